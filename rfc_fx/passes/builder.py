"""Builder: a program under construction, from copies of the guarded graph's nodes and of what is traced into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from rfc.phase import ESTIMATE
from rfc.state import SlotSpec
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.ops import aten, is_view, recall, remove_dead, value
from rfc_fx.ir.program import CLOCK, CLOCK_SPECS, Argument, Kind, Program
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.outline import graph_module
from rfc_fx.passes.push_slices import push_slices
from rfc_fx.passes.traced import traced


class Builder:
    """A program under construction: arguments appear as they are first asked for."""

    def __init__(self, guarded: Guarded, phase: str, done: set[fx.Node], layout: Layout | None = None) -> None:
        self.guarded, self.phase, self.done = guarded, phase, done
        self.layout = Layout({}) if layout is None else layout
        self.graph = fx.Graph()
        self.anchor = self.graph.create_node("placeholder", "end_of_arguments")
        self.arguments: dict[Argument, fx.Node] = {}
        self.env: dict[fx.Node, Any] = {}
        self._clock: list[fx.Node] = []
        self._weights: list[fx.Node] = []
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
                node.meta = {"slot": CLOCK_SPECS[0]}
        return self._clock

    def weights(self) -> list[fx.Node]:
        """The schedule's numbers for the step, as one 1-d tensor; none for a schedule that has none."""
        count = self.guarded.method.schedule.num_weights
        if count and not self._weights:
            first = len(CLOCK_SPECS)
            self._weights = [self.graph.call_function(aten.slice.Tensor, (self.argument(*CLOCK), 0, first, first + count))]
            self._weights[0].meta = {"slot": SlotSpec((count,), torch.float32)}
        return self._weights

    def number(self, name: str) -> fx.Node:
        """One of the schedule's numbers."""
        return self.argument("number", name, CLOCK_SPECS[0])

    def get(self, node: fx.Node) -> fx.Node:
        """The copy of a guarded node; one computed by an earlier program becomes a `carry` input, and its views are recomputed."""
        if node not in self.env:
            if node.op == "placeholder":
                self.env[node] = self.argument("input", node.name, meta=node.meta)
            elif node.target is recall:
                self.env[node] = self._slot(str(node.kwargs["slot"]))
            elif node.op == "get_attr" or (node in self.done and is_view(node)):
                self.env[node] = self.graph.node_copy(node, self.get)
            elif node in self.done:
                self.env[node] = self.argument("carry", node.name, meta={**node.meta, "val": value(node).contiguous()})
            else:
                self.env[node] = self.graph.node_copy(node, self.get)
        return self.env[node]  # type: ignore[no-any-return]

    def open(self, call: fx.Node) -> Callable[[fx.Node], fx.Node]:
        """Put a region's operations in the place of its call; returns where each of them is now."""
        inner: dict[fx.Node, fx.Node] = {}
        given = iter(call.args)
        for node in self.guarded.outlined.regions[str(call.target)].graph.nodes:
            if node.op == "placeholder":
                inner[node] = self.get(next(given))  # type: ignore[arg-type]
            elif node.op != "output":
                inner[node] = self.graph.node_copy(node, inner.__getitem__)
            elif isinstance(node.args[0], fx.Node):
                self.env[call] = inner[node.args[0]]
            else:
                self.env[call] = [inner[result] for result in node.args[0]]
                self.env |= {part: self.env[call][part.args[1]] for part in call.users}
        return inner.__getitem__

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

    def inline(
        self, owners: tuple[Any, ...], function: Callable[..., Any], specs: Sequence[SlotSpec], args: Sequence[fx.Node]
    ) -> list[fx.Node]:
        """Copy the operations of a function of tensors into the graph; `owners`: what else the function depends on (`traced`)."""
        device = value(self.guarded.watched.I).device
        parallel = self.guarded.outlined.captured.parallel
        module = traced(function, owners, specs, device, None if parallel is None else parallel.name)
        inner: dict[fx.Node, fx.Node] = {}
        arguments = iter(args)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                inner[node] = next(arguments)
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
                return [inner[result] for result in results]
            elif node.op == "get_attr":
                constant = getattr(module, str(node.target))
                inner[node] = self.graph.call_function(
                    aten.full.default, ([], constant.item()), {"dtype": constant.dtype, "device": device}
                )
                inner[node].meta = {"slot": SlotSpec((), constant.dtype)}
            else:
                inner[node] = self.graph.node_copy(node, lambda n: inner[n])
        raise AssertionError("a traced function has an output")

    def finish(self, outputs: Iterable[Any], results: Iterable[str]) -> Program:
        """Close the graph, drop what is unused and make it executable."""
        self.graph.output(tuple(outputs))
        self.graph.erase_node(self.anchor)
        if self.phase == ESTIMATE.name:
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
        module = graph_module(captured, self.graph, constants, regions, self.phase.capitalize())
        return Program(self.phase, module, arguments, tuple(results))


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
