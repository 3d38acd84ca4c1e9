"""Specialize: fold the guards to one phase, which gives a straight-line program; share what precedes the decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rfc.schedule import Phase
from rfc.state import Clock, SlotSpec, State
from rfc_fx.capture import remove_dead
from rfc_fx.errors import RFCError
from rfc_fx.guard import SCHEDULE, Guarded, select, signals, spec_of
from rfc_fx.layout import Layout
from rfc_fx.ops import aten, base_of, is_heavy, is_view, value
from rfc_fx.outline import graph_module
from rfc_fx.coarse import without_text
from rfc_fx.residuals import block_of
from rfc_fx.sites import last_sites
from rfc_fx.sketch import push_slices

Kind = Literal["input", "carry", "state", "next", "pool", "clock"]
Argument = tuple[Kind, str]
"""What a program reads: a tensor argument of the model, a result of a program before it, a slot of the state, a pool of them, the clock.

`next` is memory for the new value of a slot, for programs of engines that do not write in place.
"""

CLOCK: Argument = ("clock", "clock")

AHEAD = ("INVARIANT", "TIMESTEP")
"""Programs that run before the steps, or before a step (`rfc_fx.hoist`)."""


@dataclass(frozen=True)
class Program:
    """A straight-line graph with fixed shapes. `arguments` says what to pass, in order; `results` what comes back."""

    phase: str
    module: fx.GraphModule
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]
    """`output:<i>`, `carry:<name>`, `decision`, or `state:<slot>` where the new state is returned."""
    regional: fx.GraphModule | None = None
    """The same program with its repeated blocks as calls of one region, where that is wanted."""

    @property
    def run(self) -> fx.GraphModule:
        """What is called."""
        return self.module if self.regional is None else self.regional

    @property
    def batched(self) -> fx.GraphModule:
        """What `torch.vmap` can run."""
        return self.module

    @property
    def graph(self) -> fx.Graph:
        """The program's graph."""
        return self.module.graph

    def returned(self) -> list[fx.Node]:
        """The nodes whose values come back, in the order of `results`."""
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        return list(output.args[0])

    def written(self) -> list[str]:
        """Slots the program writes, in place or by returning them, once for each time."""
        names = {node: name for node, (kind, name) in zip(self._placeholders(), self.arguments, strict=True) if kind == "state"}
        in_place = [names[node.args[0]] for node in self.graph.nodes if node.target is aten.copy_.default]
        return in_place + [name.removeprefix("state:") for name in self.results if name.startswith("state:")]

    def read(self) -> list[str]:
        """Slots the program reads."""
        pairs = zip(self._placeholders(), self.arguments, strict=True)
        alone = [
            name
            for node, (kind, name) in pairs
            if kind == "state" and any(u.target is not aten.copy_.default or u.args[1] is node for u in node.users)
        ]
        return alone + [str(node.meta["in_pool"]) for node in self.graph.nodes if "in_pool" in node.meta]

    def _placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]


class _Builder:
    """A program under construction: arguments appear as they are first asked for."""

    def __init__(self, guarded: Guarded, phase: str, done: set[fx.Node], layout: Layout | None = None) -> None:
        self.guarded, self.phase, self.done = guarded, phase, done
        self.layout = Layout({}) if layout is None else layout
        self.graph = fx.Graph()
        self.anchor = self.graph.create_node("placeholder", "end_of_arguments")
        self.arguments: dict[Argument, fx.Node] = {}
        self.env: dict[fx.Node, Any] = {}
        self.traces: dict[Any, fx.GraphModule] = {}
        self._clock: list[fx.Node] = []
        self._rows: dict[str, fx.Node] = {}

    def argument(self, kind: Kind, name: str, spec: SlotSpec | None = None, meta: dict[str, Any] | None = None) -> fx.Node:
        """The placeholder of an argument, made at its first use."""
        key = (kind, name)
        if key not in self.arguments:
            with self.graph.inserting_before(self.anchor):
                self.arguments[key] = self.graph.placeholder(_identifier(f"{kind}_{name}" if kind != "input" else name))
            self.arguments[key].meta = dict(meta or {}) | ({"slot": spec} if spec else {})
        return self.arguments[key]

    def state(self, owner: str) -> dict[str, fx.Node]:
        """The slots of one owner."""
        return {name: self._slot(f"{owner}.{name}") for name in self.guarded.site_slots(owner)}

    def _slot(self, name: str) -> fx.Node:
        spec = self.guarded.slots[name]
        if name not in self.layout.places:
            return self.argument("state", name, spec)
        if name not in self._rows:
            pool, row = self.layout.places[name]
            self._rows[name] = self.graph.call_function(aten.select.int, (self.argument("pool", pool.name, pool.spec), -2, row))
            self._rows[name].meta = {"slot": spec, "in_pool": name}
        return self._rows[name]

    def clock(self) -> list[fx.Node]:
        """k, N and n as 0-d tensors."""
        if not self._clock:
            packed = self.argument(*CLOCK)
            self._clock = [self.graph.call_function(aten.select.int, (packed, 0, i)) for i in range(3)]
            for node in self._clock:
                node.meta = {"slot": _CLOCK_SPECS[0]}
        return self._clock

    def get(self, node: fx.Node) -> fx.Node:
        """The copy of a guarded node; what a program before has done is carried over, views of it are made again."""
        if node not in self.env:
            if node.op == "placeholder":
                self.env[node] = self.argument("input", node.name, meta=node.meta)
            elif node.op == "get_attr" or (node in self.done and is_view(node)):
                self.env[node] = self.graph.node_copy(node, self.get)
            elif node in self.done:
                self.env[node] = self.argument("carry", node.name, meta={**node.meta, "val": value(node).contiguous()})
            else:
                self.env[node] = self.graph.node_copy(node, self.get)
                if node.target is aten.view.default and not value(node.all_input_nodes[0]).is_contiguous():
                    self.env[node].target = aten.reshape.default  # what is carried is contiguous: the view was legal for what it was
        return self.env[node]  # type: ignore[no-any-return]

    def carried(self, node: fx.Node) -> fx.Node:
        """A result for the programs that follow, contiguous: what walks over tokens must not walk over another layout."""
        made = self.get(node)
        if value(node).is_contiguous():
            return made
        result = self.graph.call_function(aten.contiguous.default, (made,))
        result.meta = {"val": value(node).contiguous()}
        return result

    def like(self, result: fx.Node, traced: fx.Node) -> fx.Node:
        """The result with the strides of what was traced: views after it were chosen for those."""
        tensor = value(traced)
        result.meta.setdefault("val", tensor)
        order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
        back = [order.index(axis) for axis in range(tensor.dim())]
        if order == sorted(order):
            node = self.graph.call_function(aten.contiguous.default, (result,))
        else:
            node = self.graph.call_function(aten.permute.default, (result, order))
            node = self.graph.call_function(aten.contiguous.default, (node,))
            node = self.graph.call_function(aten.permute.default, (node, back))
        node.meta = {"val": tensor}
        return node

    def inline(self, key: Any, function: Callable[..., Any], specs: Sequence[SlotSpec], args: Sequence[fx.Node]) -> list[fx.Node]:
        """Trace a function of tensors once per `key` and copy its operations into the graph."""
        if key not in self.traces:
            with FakeTensorMode(), torch.no_grad():
                device = value(self.guarded.watched.I).device
                fakes = [torch.empty(spec.shape, dtype=spec.dtype, device=device) for spec in specs]
                self.traces[key] = make_fx(function)(*fakes)
        traced = self.traces[key]
        inner: dict[fx.Node, fx.Node] = {}
        arguments = iter(args)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                inner[node] = next(arguments)
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
                return [inner[result] for result in results]
            elif node.op == "get_attr":
                constant = getattr(traced, str(node.target))
                inner[node] = self.graph.call_function(aten.full.default, ([], constant.item()), {"dtype": constant.dtype})
                inner[node].meta = {"slot": SlotSpec((), constant.dtype)}
            else:
                inner[node] = self.graph.node_copy(node, lambda n: inner[n])
        raise AssertionError("a traced function has an output")

    def finish(self, outputs: Iterable[Any], results: Iterable[str]) -> Program:
        """Close the graph, drop what is unused and make it executable."""
        self.graph.output(tuple(outputs))
        self.graph.erase_node(self.anchor)
        if self.phase == "ESTIMATE":
            push_slices(self.graph)
        remove_dead(self.graph)
        unused = [key for key, node in self.arguments.items() if not node.users]
        for key in unused:
            self.graph.erase_node(self.arguments.pop(key))
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        arguments = tuple(sorted(self.arguments, key=lambda key: order[self.arguments[key]]))
        captured = self.guarded.outlined.captured
        targets = {str(node.target) for node in self.graph.nodes if node.op in ("get_attr", "call_module")}
        constants = {name: tensor for name, tensor in captured.constants.items() if name in targets}
        regions = {name: region for name, region in self.guarded.outlined.regions.items() if name in targets}
        module = graph_module(captured.model, self.graph, constants, regions, self.phase.capitalize())
        return Program(self.phase, module, arguments, tuple(results))


def prefix_nodes(guarded: Guarded) -> set[fx.Node]:
    """What all phases share and a data-driven schedule needs: everything the watched input is made from."""
    seen: set[fx.Node] = set()
    pending = list(signals(guarded.watched, guarded.method).values())
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return {node for node in seen if node.op not in ("placeholder", "get_attr")}


LIGHT = 16
"""Elementwise operations and reductions that are cheaper to do again than to keep a tensor of the stream for."""


def remade(guarded: Guarded, shared: AbstractSet[fx.Node], hoisted: AbstractSet[fx.Node]) -> set[fx.Node]:
    """What PREFIX computes and FULL and ESTIMATE compute again, from what is carried to them anyway.

    Typically the first site's input, made from the residual stream and the modulation: a result of PREFIX lives as long as the step does,
    so each that is carried adds to the memory of a full step.
    """
    made = shared - hoisted
    read = {site.I for site in guarded.sites} | {
        source for node in guarded.module.graph.nodes if node not in made for source in node.all_input_nodes
    }
    order = [node for node in guarded.module.graph.nodes if node in made]
    bases = {base_of(node) for node in order if node in read}
    again: set[fx.Node] = set()
    for node in reversed([node for node in order if node in bases]):
        closure = _closure(node, made, bases - {node})
        if not any(map(is_heavy, closure)) and sum(not is_view(one) for one in closure) <= LIGHT:
            bases.remove(node)
            again |= closure
    return again


def _closure(node: fx.Node, made: AbstractSet[fx.Node], stop: AbstractSet[fx.Node]) -> set[fx.Node]:
    """The node and what it is made from, up to what is there: results of other programs, arguments and weights."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        one = pending.pop()
        if one in made and one not in stop and one not in found:
            found.add(one)
            pending.extend(one.all_input_nodes)
    return found


def specialize(
    guarded: Guarded,
    phase: Phase,
    *,
    writes: Literal["in_place", "returned"] = "in_place",
    hoisted: AbstractSet[fx.Node] = frozenset(),
    layout: Layout | None = None,
) -> Program:
    """Return the program of one phase. `hoisted`: nodes that are computed before the step; `layout`: the pools that ESTIMATE reads.

    VERIFY is ESTIMATE with the last block computed beside its estimate, and the error as one more result.
    FULL computes every site and refreshes its state: in place as soon as a site's output is there, or returned after the
    outputs, in the order of `guarded.slots`. ESTIMATE reads the sites' state and writes nothing but what a schedule keeps of all steps.
    """
    shared = prefix_nodes(guarded)
    done = (shared | hoisted) - remade(guarded, shared, hoisted)
    build = _Builder(guarded, phase, done, layout if phase != "FULL" else None)
    by_name = {site.name: site for site in guarded.sites}
    new: dict[str, fx.Node] = {}
    estimator, schedule = guarded.method.estimator, guarded.method.schedule

    def store(owner: str, values: dict[str, fx.Node]) -> None:
        for name, node in values.items():
            slot = f"{owner}.{name}"
            if writes == "in_place":
                build.graph.call_function(aten.copy_.default, (build.argument("state", slot), node))
            new[slot] = node

    def refresh(owner: str, slots: dict[str, SlotSpec], fresh: Callable[..., dict[str, Tensor]], given: list[tuple[fx.Node, SlotSpec]]) -> None:
        old = build.state(owner)

        def step(*tensors: Tensor) -> list[Tensor]:
            held, inputs, clock = tensors[: len(slots)], tensors[len(slots) : -3], tensors[-3:]
            new = fresh(dict(zip(slots, held, strict=True)), *inputs, Clock(*clock))
            return [new[name] for name in slots]

        nodes, specs = [node for node, _ in given], [spec for _, spec in given]
        key = ("refresh", owner == SCHEDULE, *specs, *slots.items())
        results = build.inline(key, step, [*slots.values(), *specs, *_CLOCK_SPECS], [*old.values(), *nodes, *build.clock()])
        store(owner, dict(zip(slots, results, strict=True)))

    def estimate(owner: str, I: fx.Node, specs: tuple[SlotSpec, SlotSpec]) -> fx.Node:
        slots = estimator.slots(*specs)

        def step(*tensors: Tensor) -> Tensor:
            *held, I, k, N, n = tensors
            return estimator.estimate(dict(zip(slots, held, strict=True)), I, Clock(k, N, n))

        key = ("estimate", repr(estimator), specs)
        inputs = [*build.state(owner).values(), I, *build.clock()]
        return build.inline(key, step, [*slots.values(), specs[0], *_CLOCK_SPECS], inputs)[0]

    watched = signals(guarded.watched, guarded.method)
    if watched and (phase == "FULL" or schedule.remembers == "all steps"):
        specs = {name: spec_of(node) for name, node in watched.items()}

        def seen(old: State, *tensors: Any) -> dict[str, Tensor]:
            return schedule.refresh(old, dict(zip(specs, tensors[:-1], strict=True)), tensors[-1])

        refresh(SCHEDULE, schedule.slots(specs), seen, [(build.get(node), spec_of(node)) for node in watched.values()])
    for node in guarded.module.graph.nodes:
        if node.target is select:
            full, site = node.args[1], by_name[node.kwargs["site"]]
            I = build.get(site.I)
            base = None if site.base is None else build.get(site.base)
            specs = (spec_of(site.I), spec_of(site.output))
            if phase == "FULL":
                output = build.get(full)
                O = output if base is None else build.graph.call_function(aten.sub.Tensor, (output, base))
                refresh(site.name, estimator.slots(*specs), estimator.refresh, [(I, specs[0]), (O, specs[1])])
                build.env[node] = output
            else:
                O_hat = estimate(site.name, I, specs)
                result = O_hat if base is None else build.graph.call_function(aten.add.Tensor, (base, O_hat))
                build.env[node] = build.like(result, site.output)
        elif node.op == "output":
            outputs = list(fx.node.map_arg(node.args[0], build.get))
            results = [f"output:{i}" for i in range(len(outputs))]
            if phase == "VERIFY":
                outputs.append(_verified(build, guarded))
                results.append("decision")
            if writes == "returned":
                outputs += [new[slot] for slot in guarded.slots if slot in new]
                results += [f"state:{slot}" for slot in guarded.slots if slot in new]
            return build.finish(outputs, results)
        elif node.op not in ("placeholder", "get_attr") and node not in build.done and phase == "FULL":
            build.get(node)  # in the order of the model; an estimate is pulled by what it needs
    raise AssertionError("a guarded graph has an output")


def _verified(build: _Builder, guarded: Guarded) -> fx.Node:
    """err = mean(|x - x'| / (|x'| + 1e-10)), x the latent's stream that leaves the last block by estimates, x' as computed from where it entered.

    Raises RFCError where the sites are coarser than blocks.
    """
    last = guarded.sites[-1]
    if not block_of(last.name):
        raise RFCError(f"VERIFY computes the last block, but {last.name} lies in none; choose granularity 'module' or 'block'")
    mine = {site.name for site in last_sites(guarded.sites)}
    guards = [node for node in guarded.module.graph.nodes if node.target is select]
    by_site = {node.kwargs["site"]: node for node in guards}
    affected: set[fx.Node] = set()
    for node in guarded.module.graph.nodes:
        if (node.target is select and node.kwargs["site"] in mine) or any(source in affected for source in node.all_input_nodes):
            affected.add(node)
    stream = without_text(by_site[last.name] if last.joined is None else last.joined, guarded.watched.I)
    computed: dict[fx.Node, fx.Node] = {}

    def real(node: fx.Node) -> fx.Node:
        if node not in affected:
            return build.get(node)
        if node not in computed:
            computed[node] = real(node.args[1]) if node.target is select else build.graph.node_copy(node, real)  # type: ignore[arg-type]
        return computed[node]

    def error(x: Tensor, x_real: Tensor) -> Tensor:
        x, x_real = x.float(), x_real.float()
        return ((x - x_real).abs() / (x_real.abs() + 1e-10)).mean().reshape(1)

    spec = spec_of(stream)
    return build.inline("verified", error, [spec, spec], [build.get(stream), real(stream)])[0]


def ahead(guarded: Guarded, phase: str, nodes: Sequence[fx.Node], done: AbstractSet[fx.Node] = frozenset()) -> Program:
    """The program that computes hoisted nodes; `done`: those computed by a program before it."""
    build = _Builder(guarded, phase, set(done))
    return build.finish([build.carried(node) for node in nodes], [f"carry:{node.name}" for node in nodes])


def prefix(guarded: Guarded, carries: Iterable[str], timestep: str | None, hoisted: AbstractSet[fx.Node] = frozenset()) -> Program | None:
    """PREFIX: the shared part, and the decision's data as one float32 tensor; None when no data decides.

    The data are [eps], and where the timestep is known [eps, largest timestep, smallest timestep].
    """
    schedule = guarded.method.schedule
    watched = signals(guarded.watched, guarded.method)
    if not watched:
        return None
    build = _Builder(guarded, "PREFIX", set(hoisted))
    specs = {name: spec_of(node) for name, node in watched.items()}
    slots = schedule.slots(specs)

    def error(*tensors: Tensor) -> Tensor:
        held, seen, clock = tensors[: len(slots)], tensors[len(slots) : -3], tensors[-3:]
        return schedule.error(dict(zip(specs, seen, strict=True)), dict(zip(slots, held, strict=True)), Clock(*clock)).reshape(1)

    inputs = [*build.state(SCHEDULE).values(), *map(build.get, watched.values()), *build.clock()]
    (decision,) = build.inline("error", error, [*slots.values(), *specs.values(), *_CLOCK_SPECS], inputs)
    by_name = {node.name: node for node in guarded.module.graph.nodes}
    if timestep is not None:
        given = build.get(by_name[timestep])
        ends = [build.graph.call_function(end, (given,)) for end in (aten.max.default, aten.min.default)]
        noise = build.graph.call_function(aten.stack.default, (ends,))
        noise = build.graph.call_function(aten.to.dtype, (noise, torch.float32))
        decision = build.graph.call_function(aten.cat.default, ([decision, noise],))
    names = list(carries)
    return build.finish([decision, *(build.carried(by_name[name]) for name in names)], ["decision", *(f"carry:{n}" for n in names)])


_CLOCK_SPECS = [SlotSpec((), torch.float32)] * 3


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
