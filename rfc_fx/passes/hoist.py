"""Hoist: what depends neither on the latent nor on the timestep is computed once per generation; what needs the timestep alone, ahead.

Loop-invariant code motion over the sampling loop: text projections, rotary tables, keys and values of the text on one hand,
the modulation of every block (adaLN) on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from rfc_fx.ir.ops import CASTS, aten, base_of, closure, flops, has_known_shape, is_heavy, is_mutable, is_view, recall, select, shape, value
from rfc_fx.ir.plan import Dependence, Level
from rfc_fx.passes.guard import Guarded

LARGE = 4096
"""Elementwise work on so many elements is worth a table; on fewer, a kernel that recomputes it costs nothing.

Work in float64 (rotary tables) always is: GPUs have little of it, and WebGPU has none.
"""


@dataclass(frozen=True)
class Hoisted:
    """Nodes of the guarded graph that are computed outside of the steps, and those of them that the steps read."""

    levels: dict[fx.Node, Level]
    invariant: dict[fx.Node, None]
    """Computed once per generation, in order."""
    timestep: dict[fx.Node, None]
    """Computed from the timestep, for all steps at once where they are known."""
    invariant_results: list[fx.Node]
    timestep_results: list[fx.Node]

    @property
    def nodes(self) -> set[fx.Node]:
        """Nodes computed outside the per-step programs."""
        return {*self.invariant, *self.timestep}

    @staticmethod
    def bytes(nodes: Iterable[fx.Node]) -> int:
        """Bytes of the nodes' tensors."""
        return sum(prod(shape(node)) * value(node).dtype.itemsize for node in nodes)


def dependence(guarded: Guarded, timestep: str | None, prefix: set[fx.Node]) -> list[Dependence]:
    """Count operations, FLOPs and weights by what they depend on, and what hoisting would move ahead of the steps."""
    level = levels(guarded, timestep)
    hoisted = hoist(guarded, timestep, prefix)
    moved = {Level.INVARIANT: hoisted.invariant, Level.TIMESTEP: hoisted.timestep, Level.LATENT: {}}
    results = {Level.INVARIANT: hoisted.invariant_results, Level.TIMESTEP: hoisted.timestep_results, Level.LATENT: []}
    rows = []
    for kind in Level:
        nodes = [node for node in guarded.module.graph.nodes if level[node] is kind and node.op in ("call_function", "call_module")]
        work = [
            node
            for node in _with_regions(nodes)
            if node.op == "call_function" and node.target not in (select, recall) and not is_view(node)
        ]
        weights = {source.target: source for node in work for source in node.all_input_nodes if source.op == "get_attr"}
        ahead = [node for node in moved[kind] if not is_view(node)]
        rows.append(Dependence(kind, len(work), flops(work), Hoisted.bytes(weights.values()), len(ahead), Hoisted.bytes(results[kind])))
    return rows


def _with_regions(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """The nodes, with those of called graphs in the place of the calls."""
    for node in nodes:
        owner = node.graph.owning_module
        if node.op == "call_module" and owner is not None:
            called = owner.get_submodule(str(node.target))
            assert isinstance(called, fx.GraphModule)
            yield from _with_regions(called.graph.nodes)
        else:
            yield node


def levels(guarded: Guarded, timestep: str | None) -> dict[fx.Node, Level]:
    """Return what each node of the guarded graph depends on.

    Arguments that change from step to step beside the timestep (control hints, a second time) count as latent, and so do random numbers.
    """
    captured = guarded.outlined.captured
    found: dict[fx.Node, Level] = {}
    for node in guarded.module.graph.nodes:
        if node.op == "placeholder":
            argument = captured.names.get(node.name, "")
            if node.name == timestep:
                found[node] = Level.TIMESTEP
            elif node.name in captured.latents or not argument or any(part in argument for part in ("control", "timestep", "sigma")):
                found[node] = Level.LATENT
            else:
                found[node] = Level.INVARIANT
        elif node.target in (select, recall) or is_mutable(node) or _is_random(node):
            found[node] = Level.LATENT
        else:
            found[node] = max((found[source] for source in node.all_input_nodes), default=Level.INVARIANT)
    return found


def hoist(guarded: Guarded, timestep: str | None, prefix: set[fx.Node]) -> Hoisted:
    """Choose what is worth computing outside of the steps.

    Of the timestep's work only what PREFIX or ESTIMATE need is taken: estimated steps would pay for what FULL alone needs.
    """
    graph = guarded.module.graph
    level = levels(guarded, timestep)
    order = {node: i for i, node in enumerate(graph.nodes)}
    every_step = _needed_by_estimate(guarded) | prefix
    sources = {
        Level.INVARIANT: (node for node in graph.nodes if level[node] is not Level.INVARIANT),
        Level.TIMESTEP: (node for node in graph.nodes if level[node] is Level.LATENT and node in every_step),
    }
    chosen: dict[Level, dict[fx.Node, None]] = {}
    for kind, users in sources.items():
        edges = (base_of(source) for user in users for source in user.all_input_nodes if level[source] is kind)
        ends = [node for node in dict.fromkeys(edges) if _is_computed(node) and has_known_shape(node)]
        groups = [_of_one_level(end, level) for end in ends]
        worth = [group for group in groups if any(_is_work(node, kind) for node in group)]
        chosen[kind] = dict.fromkeys(sorted({node for group in worth for node in group}, key=order.__getitem__))
    results = {kind: _read_outside(nodes) for kind, nodes in chosen.items()}
    return Hoisted(level, chosen[Level.INVARIANT], chosen[Level.TIMESTEP], results[Level.INVARIANT], results[Level.TIMESTEP])


def _read_outside(nodes: dict[fx.Node, None]) -> list[fx.Node]:
    """Tensors among the nodes that others read, behind views."""
    read = (base_of(node) for node in nodes if any(user not in nodes for user in node.users))
    return [node for node in dict.fromkeys(read) if node in nodes]


def _needed_by_estimate(guarded: Guarded) -> set[fx.Node]:
    needs_input = guarded.method.estimator.needs_input
    seen: set[fx.Node] = set()
    pending = [node for node in guarded.module.graph.nodes if node.op == "output"]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.target is select:
            I, base = node.kwargs["I"], node.kwargs["base"]
            if isinstance(forecast := node.kwargs.get("forecast"), fx.Node):
                pending.append(forecast)
            reads_I = needs_input or node.kwargs["site"] in guarded.tokens
            pending.extend(n for n in ((I, base) if reads_I else (base,)) if isinstance(n, fx.Node))
        else:
            pending.extend(node.all_input_nodes)
    return seen


def _of_one_level(end: fx.Node, level: dict[fx.Node, Level]) -> set[fx.Node]:
    """The node and what it is made from at its own level, without arguments and weights."""
    return closure([end], lambda node: level[node] is level[end] and _is_computed(node))


def _is_computed(node: fx.Node) -> bool:
    return node.op == "call_function"


def _is_work(node: fx.Node, kind: Level) -> bool:
    if not has_known_shape(node):
        return False
    if is_heavy(node):
        return True
    if kind is not Level.INVARIANT or is_view(node) or node.target in CASTS or not node.all_input_nodes:
        return False
    return prod(shape(node)) >= LARGE or getattr(value(node), "dtype", None) is torch.float64


def _is_random(node: fx.Node) -> bool:
    if node.target is aten.scaled_dot_product_attention.default:  # random only with dropout
        return bool(node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0))
    tags = getattr(node.target, "tags", ())
    return any("nondeterministic" in str(tag) for tag in tags) and isinstance(value(node), Tensor)
