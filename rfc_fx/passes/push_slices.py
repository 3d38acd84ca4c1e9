"""Sketch: where a program needs only every n-th token of a value, compute it for those tokens alone.

A sketched estimator reads a strided slice of each site's input. Moved up through what acts on each token for itself, the slices
leave two separate parts: the relational coefficients, computed on a small copy of the residual stream, and one pass over
the state that forecasts all sites.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from rfc_fx.ir.ops import CASTS, aten, is_mutable, value

Cut = tuple[int, int]
"""(axis counted from the end, step): X[..., ::step, ...]."""


_NORMALIZED = frozenset({aten.layer_norm.default, aten.rms_norm.default})


def push_slices(graph: fx.Graph) -> None:
    """Move strided slices up through elementwise operations and normalizations over other axes, in place.

    Where something else stands in the way the slice stays there. Values are the same, computed for fewer tokens.
    """
    wanted: dict[fx.Node, set[Cut]] = {}
    roots: dict[fx.Node, tuple[fx.Node, Cut]] = {}
    for node in reversed(list(graph.nodes)):
        if (root := _strided(node)) is not None:
            roots[node] = root
            wanted.setdefault(root[0], set()).add(root[1])
        for cut in wanted.get(node, ()):
            for source in _sliced_sources(node, cut):
                wanted.setdefault(source, set()).add(cut)
    small: dict[tuple[fx.Node, Cut], fx.Node] = {}
    for node in list(graph.nodes):
        for cut in sorted(wanted.get(node, ())):
            small[node, cut] = _cut_copy(graph, node, cut, small)
        if node in roots:
            node.replace_all_uses_with(small[roots[node]])
            graph.erase_node(node)


def _cut_copy(graph: fx.Graph, node: fx.Node, cut: Cut, small: dict[tuple[fx.Node, Cut], fx.Node]) -> fx.Node:
    """The node for the tokens of the cut: made from cut operands where it passes, a slice of it where it does not."""
    sources = set(_sliced_sources(node, cut))
    with graph.inserting_after(_last_argument(node)):
        if sources:
            copy = graph.node_copy(node, lambda source: small[source, cut] if source in sources else source)
        else:
            copy = graph.call_function(aten.slice.Tensor, (node, -cut[0], 0, torch.iinfo(torch.int64).max, cut[1]))
    copy.meta = {"val": _sliced(value(node), cut)} if isinstance(value(node), Tensor) else {}
    return copy


def _last_argument(node: fx.Node) -> fx.Node:
    """The node itself, or behind a placeholder the last of them: arguments come first."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node


def _strided(node: fx.Node) -> tuple[fx.Node, Cut] | None:
    """What a slice with a step above 1 and no other bounds cuts, and where; None for every other node."""
    if node.target is not aten.slice.Tensor:
        return None
    given: list[object] = [*node.args, *(0, None, None, 1)[len(node.args) - 1 :]]
    source, axis, start, end, step = given
    shape = _shape(source)
    if not isinstance(source, fx.Node) or not shape or not isinstance(axis, int) or not isinstance(step, int) or step == 1:
        return None
    whole = start in (0, None) and (end is None or (isinstance(end, int) and end >= shape[axis]))
    return (source, (len(shape) - axis if axis >= 0 else -axis, step)) if whole else None


def _shape(node: object) -> tuple[int, ...] | None:
    """Shape of a node's tensor; None when it is not known."""
    if not isinstance(node, fx.Node):
        return ()
    if isinstance(tensor := value(node), Tensor):
        return tuple(tensor.shape)
    return node.meta["slot"].shape if "slot" in node.meta else None


def _passes(node: fx.Node, cut: Cut) -> bool:
    """Whether slicing the operands gives the slice of the result."""
    if node.op != "call_function" or is_mutable(node) or (shape := _shape(node)) is None:
        return False
    if any(_shape(source) is None for source in node.all_input_nodes):
        return False
    if node.target in _NORMALIZED:
        axes = node.args[1]
        return isinstance(axes, list | tuple) and cut[0] > len(axes)
    tags = getattr(node.target, "tags", ())
    if not (torch.Tag.pointwise in tags or node.target in CASTS):
        return False
    return any(_varies(source, cut, shape) for source in node.all_input_nodes)


def _varies(source: fx.Node, cut: Cut, result: tuple[int, ...]) -> bool:
    shape = _shape(source) or ()
    return len(shape) >= cut[0] and shape[-cut[0]] == result[-cut[0]] and shape[-cut[0]] != 1


def _sliced_sources(node: fx.Node, cut: Cut) -> Iterator[fx.Node]:
    """The operands that have to be sliced with the result."""
    if _passes(node, cut):
        operands = node.all_input_nodes if node.target not in _NORMALIZED else node.all_input_nodes[:1]
        yield from (source for source in operands if _varies(source, cut, _shape(node) or ()))


def _sliced(tensor: Tensor, cut: Cut) -> Tensor:
    axis = tensor.dim() - cut[0]
    return tensor[(slice(None),) * axis + (slice(None, None, cut[1]),)]
