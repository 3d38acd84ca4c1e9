"""Specialize: fold the guards to one phase, which gives a straight-line program."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from torch import Tensor, fx

from rfc.granularity import block_of
from rfc.phase import Phase, PhaseName, phase_named
from rfc.ranks import means
from rfc.state import Clock, SlotSpec, State
from rfc_fx.errors import RFCError
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.ops import aten, select, spec_of, value
from rfc_fx.ir.program import CLOCK_SPECS, Program
from rfc_fx.passes.builder import Builder
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.prefix import one_decision, prefix_nodes, rematerialized
from rfc_fx.passes.token_wise import computed, grown_older, no_age, score
from rfc_fx.sites.find import last_sites
from rfc_fx.sites.residual import Site
from rfc_fx.sites.state import LAST, SCHEDULE, schedule_slots, signals
from rfc_fx.sites.token_wise import TokenSite

Writes = Literal["in_place", "returned"]


def specialize(
    guarded: Guarded,
    name: PhaseName,
    *,
    writes: Writes = "in_place",
    hoisted: AbstractSet[fx.Node] = frozenset(),
    layout: Layout | None = None,
) -> Program:
    """Return the program of one phase. `hoisted`: nodes that are computed before the step; `layout`: the pools that ESTIMATE reads.

    FULL computes every site and refreshes its state: in place as soon as a site's output is there, or returned after the
    outputs, in the order of `guarded.slots`. ESTIMATE reads the sites' state and writes nothing but what a schedule keeps of all steps.
    VERIFY is ESTIMATE with the last block computed beside its estimate, and the error as one more result. PARTIAL is ESTIMATE where sites
    that work on each token for itself compute some, and write these to their state. REUSE begins behind the last block, with the stream
    that FULL and PARTIAL keep.
    """
    phase = phase_named(name)
    shared = prefix_nodes(guarded)
    done = (shared | hoisted) - rematerialized(guarded, shared, hoisted)
    step = _Step(guarded, phase, writes, Builder(guarded, name, done, None if phase.computes_sites else layout))
    step.watch()
    by_name = {site.name: site for site in guarded.sites}
    for node in guarded.module.graph.nodes:
        if node.target is select:
            step.pass_site(node, by_name[node.kwargs["site"]])
        elif node.op == "output":
            return step.finish(node)
        elif phase.computes_sites and node.op not in ("placeholder", "get_attr") and node not in done:
            step.compute(node)  # in the order of the model; an estimate is pulled by what it needs
    raise AssertionError("a guarded graph has an output")


class _Step:
    """One phase's program on its way through the guarded graph."""

    def __init__(self, guarded: Guarded, phase: Phase, writes: Writes, build: Builder) -> None:
        self.guarded, self.phase, self.writes, self.build = guarded, phase, writes, build
        self.estimator = guarded.method.estimator
        self.new: dict[str, fx.Node] = {}
        self.scored: dict[fx.Node, list[TokenSite]] = {}
        for site in guarded.tokens.values():
            if (attention := site.attention) is not None:
                self.scored.setdefault(attention.call or attention.node, []).append(site)
        if phase.reads_last:
            build.env[guarded.last] = build.like(build.state(LAST)["x"], guarded.last)

    def watch(self, output: fx.Node | None = None) -> None:
        """Keep what the schedule watches, after the steps that it says; `output`: the stream behind the first site, once it is computed."""
        schedule, watched = self.guarded.method.schedule, signals(self.guarded.watched, self.guarded.method)
        is_full = self.phase.computes_sites
        if not watched or not (is_full or schedule.remembers == "all steps") or (output is None) == (is_full and schedule.reads_output):
            return
        given = {name: (self.build.get(node), spec_of(node)) for name, node in watched.items()}
        if output is not None:
            given["output"] = (output, spec_of(self.guarded.watched.output))

        def seen(old: State, *tensors: Any) -> dict[str, Tensor]:
            return schedule.refresh(old, dict(zip(given, tensors[:-1], strict=True)), tensors[-1])

        slots = schedule_slots(self.guarded.watched, self.guarded.method)
        renewed = list(watched) if schedule.reads_output and not is_full else list(slots)
        self.refresh(SCHEDULE, (schedule, *given), slots, seen, list(given.values()), renewed)

    def compute(self, node: fx.Node) -> None:
        """Copy a node of the model, and score the tokens that it tells something about."""
        if node not in self.scored:
            self.build.get(node)
            return
        where = self.build.open(node) if node.op == "call_module" else self.build.get
        tokens = self.guarded.method.tokens
        assert tokens is not None
        for site in self.scored[node]:
            assert site.attention is not None
            self.store(f"{site.name}.tokens", {"score": score(self.build, where, site.attention, tokens.score)})

    def pass_site(self, node: fx.Node, site: Site) -> None:
        """Put what the phase makes of a site in the place of its guard."""
        build = self.build
        I, base = build.get(site.I), None if site.base is None else build.get(site.base)
        specs = (spec_of(site.I), spec_of(site.output))
        slots = self.estimator.slots(*specs)
        if self.phase.computes_sites:
            output = build.get(node.args[1])  # type: ignore[arg-type]
            O = output if base is None else self._as_output(site, build.graph.call_function(aten.sub.Tensor, (output, base)))
            if self.estimator.corrects:
                given = [(I, specs[0]), (O, specs[1])]
                added = self.of_state(("correction", self.estimator), build.state(site.name), slots, self.estimator.correction, given)[0]
                output = build.like(build.graph.call_function(aten.add.Tensor, (output, added)), site.output)
            self.refresh(site.name, (self.estimator,), slots, self.estimator.refresh, [(I, specs[0]), (O, specs[1])])
            if site.name == self.guarded.watched.name:
                self.watch(output)
            if site.name in self.guarded.tokens:
                self.store(f"{site.name}.tokens", {"age": no_age(build, I, self.guarded.slots[f"{site.name}.tokens.age"])})
            build.env[node] = output
            return
        if isinstance(forecast := node.kwargs.get("forecast"), fx.Node):
            build.env[node] = build.like(build.get(forecast), site.output)
            return
        computes_some = self.phase.tokens_part is not None and site.name in self.guarded.tokens
        held = self.partial(site, I, slots) if computes_some else build.state(site.name)
        O_hat = self.of_state(("estimate", self.estimator), held, slots, self.estimator.estimate, [(I, specs[0])])[0]
        result = O_hat if base is None else self._as_output(site, build.graph.call_function(aten.add.Tensor, (base, O_hat)))
        build.env[node] = build.like(result, site.output)

    def _as_output(self, site: Site, result: fx.Node) -> fx.Node:
        """What was made with a site's base, in the type of its output: a model may cast the stream behind the base."""
        if site.base is None or value(site.base).dtype == (dtype := value(site.output).dtype):
            return result
        return self.build.graph.call_function(aten.to.dtype, (result, dtype))

    def partial(self, site: Site, I: fx.Node, slots: dict[str, SlotSpec]) -> dict[str, fx.Node]:
        """Compute some of a site's tokens, and write them and the ages; returns the site's state."""
        tokens, found = self.guarded.method.tokens, self.guarded.tokens[site.name]
        assert tokens is not None
        count = tokens.count(self.phase.name, found.place)
        if count == 0:
            age = self.build.state(f"{site.name}.tokens")["age"]
            self.store(f"{site.name}.tokens", {"age": grown_older(self.build, age, self.guarded.slots[f"{site.name}.tokens.age"])})
            return self.build.state(site.name)
        held, age = computed(self.build, found, count, tokens, self.estimator, I, slots)
        self.store(site.name, held)
        self.store(f"{site.name}.tokens", {"age": age})
        return held

    def refresh(
        self,
        owner: str,
        by: tuple[Any, ...],
        slots: dict[str, SlotSpec],
        fresh: Callable[..., dict[str, Tensor]],
        given: list[tuple[fx.Node, SlotSpec]],
        renewed: list[str] | None = None,
    ) -> None:
        """Write what an owner keeps after this step (`renewed`, by default all), as `fresh` makes it of its tensors and of `by`."""
        names = list(slots) if renewed is None else renewed

        def kept(*given: Any) -> list[Tensor]:
            new = fresh(*given)
            return [new[name] for name in names]

        results = self.of_state(("refresh", by, tuple(names)), self.build.state(owner), slots, kept, given)
        self.store(owner, dict(zip(names, results, strict=True)))

    def of_state(
        self,
        key: tuple[Any, ...],
        held: dict[str, fx.Node],
        slots: dict[str, SlotSpec],
        made: Callable[..., Any],
        given: list[tuple[fx.Node, SlotSpec]],
    ) -> list[fx.Node]:
        """`made` of the state in these slots, of what is given, and of the clock; it depends on them and on `key`."""
        weights = self.build.weights()
        clock, clock_specs = [*self.build.clock(), *weights], [*CLOCK_SPECS, *(node.meta["slot"] for node in weights)]
        ends = len(clock)

        def step(*tensors: Tensor) -> Any:
            state, inputs, times = tensors[: len(slots)], tensors[len(slots) : -ends], tensors[-ends:]
            return made(dict(zip(slots, state, strict=True)), *inputs, Clock(*times))

        nodes, specs = [node for node, _ in given], [spec for _, spec in given]
        return self.build.inline((*key, tuple(slots)), step, [*slots.values(), *specs, *clock_specs], [*held.values(), *nodes, *clock])

    def store(self, owner: str, values: dict[str, fx.Node]) -> None:
        """Write slots, in place or as results."""
        for name, node in values.items():
            slot = f"{owner}.{name}"
            if self.writes == "in_place":
                self.build.graph.call_function(aten.copy_.default, (self.build.argument("state", slot), node))
            self.new[slot] = node

    def finish(self, node: fx.Node) -> Program:
        """The program with the model's outputs and what comes back beside them."""
        outputs = list(fx.node.map_arg(node.args[0], self.build.get))  # type: ignore[arg-type]
        results = [f"output:{i}" for i in range(len(outputs))]
        if self.phase.verifies:
            outputs.append(one_decision(self.build, self.guarded, _verified(self.build, self.guarded)))
            results.append("decision")
        if f"{LAST}.x" in self.guarded.slots and self.phase.keeps_last:
            self.store(LAST, {"x": self.build.get(self.guarded.last)})
        if self.writes == "returned":
            outputs += [self.new[slot] for slot in self.guarded.slots if slot in self.new]
            results += [f"state:{slot}" for slot in self.guarded.slots if slot in self.new]
        return self.build.finish(outputs, results)


def _verified(build: Builder, guarded: Guarded) -> fx.Node:
    """err = mean(|x - x'| / (|x'| + 1e-10)), x the latent's stream that leaves the last block by estimates, x' as computed from its entry.

    Raises RFCError where the last site lies in no block.
    """
    last = guarded.sites[-1]
    if not block_of(last.name):
        raise RFCError(f"VERIFY computes the last block, but the last estimate is that of {last.name}, which lies in none")
    mine = {site.name for site in last_sites(guarded.sites)}
    affected: set[fx.Node] = set()
    for node in guarded.module.graph.nodes:
        if (node.target is select and node.kwargs["site"] in mine) or any(source in affected for source in node.all_input_nodes):
            affected.add(node)
    stream = guarded.last
    computed: dict[fx.Node, fx.Node] = {}

    def real(node: fx.Node) -> fx.Node:
        if node not in affected:
            return build.get(node)
        if node not in computed:
            computed[node] = real(node.args[1]) if node.target is select else build.graph.node_copy(node, real)  # type: ignore[arg-type]
        return computed[node]

    def error(x: Tensor, x_real: Tensor) -> Tensor:
        x, x_real = x.float(), x_real.float()
        return means([(x - x_real).abs() / (x_real.abs() + 1e-10)])[0].reshape(1)

    spec = spec_of(stream)
    return build.inline(("verified",), error, [spec, spec], [build.get(stream), real(stream)])[0]
