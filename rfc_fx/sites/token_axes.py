"""Token axes: where the tokens are in each result of a site's work, or which operation mixes them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import fx

from rfc_fx.ir.ops import CASTS, VIEWS, aten, shape

ATTENTION = aten.scaled_dot_product_attention.default


class Work(NamedTuple):
    """What a site's output is made of from its input, as single operations in order: those of its region, or of the graph itself."""

    nodes: list[fx.Node]
    sources: set[fx.Node]
    """What stands for I."""
    output: fx.Node
    call: fx.Node | None
    """The call of the region."""

    def argument(self, placeholder: fx.Node) -> fx.Node:
        """What a placeholder of the region is called with."""
        assert self.call is not None
        placeholders = [node for node in placeholder.graph.nodes if node.op == "placeholder"]
        node = self.call.args[placeholders.index(placeholder)]
        assert isinstance(node, fx.Node)
        return node


SIZED = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})
"""Operations that name the shape of their result."""


_NORMALIZED = frozenset({aten.layer_norm.default, aten.rms_norm.default})


_SPLIT = frozenset({aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default})


_REDUCED = frozenset({aten.mean.dim, aten.sum.dim_IntList, aten.amax.default})


def token_axes(work: Work, count: int) -> dict[fx.Node, int] | str:
    """The axis of the tokens in every result of the work; why not, where an operation mixes tokens or is not known not to."""
    if (meeting := next((node for node in work.nodes if node.target is ATTENTION), None)) is not None:
        return f"{meeting.name} is attention, in which every token meets others"
    axes = dict.fromkeys(work.sources, 1)
    for node in work.nodes:
        axis = _axis_after(node, axes)
        if axis is None:
            return f"{node.name} ({node.target}) is not known to work on each token for itself"
        axes[node] = axis
    return axes if axes.get(work.output) == 1 else f"{work.output.name} has its tokens in another axis than the input"


def _axis_after(node: fx.Node, axes: Mapping[fx.Node, int]) -> int | None:
    """Where the tokens are in a result, given where they are in its operands; None where they do not stay apart."""
    target, first = node.target, node.args[0]
    tags = getattr(target, "tags", ())
    if torch.Tag.pointwise in tags or target in CASTS:
        return _axis_of_pointwise(node, axes)
    if target is aten.cat.default:
        return _axis_of_cat(node, axes)
    if not isinstance(first, fx.Node) or [operand for operand in node.all_input_nodes if operand in axes] != [first]:
        return None
    axis, rank = axes[first], len(shape(first))
    if target is operator.getitem:
        return axis
    if target is aten.linear.default or (target is aten.matmul.default and len(shape(node.args[1])) == 2):
        return axis if axis < rank - 1 else None
    if target in _NORMALIZED:
        return axis if axis < rank - len(node.args[1]) else None  # type: ignore[arg-type]
    if target in _SPLIT:
        return axis if _axis(node, 2, rank) != axis else None
    if target is aten.slice.Tensor:
        return axis if _axis(node, 1, rank) != axis else None
    if target in _REDUCED:
        return _axis_of_reduction(node, axis, rank)
    if target in SIZED or target in VIEWS:
        return _axis_of_view(shape(first), axis, shape(node))
    return _axis_of_permutation(node, axis, rank)


def _axis(node: fx.Node, index: int, rank: int) -> int:
    dim = node.args[index] if len(node.args) > index else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    return dim % rank


def _axis_of_pointwise(node: fx.Node, axes: Mapping[fx.Node, int]) -> int | None:
    """Operands are lined up at their last axes; none from elsewhere may have an entry for each token."""
    ends = {len(shape(operand)) - axes[operand] for operand in node.all_input_nodes if operand in axes}
    end = ends.pop()
    untokened = [shape(operand) for operand in node.all_input_nodes if operand not in axes]
    if ends or any(len(other) >= end and other[-end] != 1 for other in untokened):
        return None
    return len(shape(node)) - end


def _axis_of_cat(node: fx.Node, axes: Mapping[fx.Node, int]) -> int | None:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    part_axes = {axes.get(part, -1) for part in parts}  # type: ignore[arg-type]
    axis = part_axes.pop()
    return None if part_axes or axis < 0 or _axis(node, 1, len(shape(node))) == axis else axis


def _axis_of_reduction(node: fx.Node, axis: int, rank: int) -> int | None:
    dims = node.args[1] if len(node.args) > 1 else None
    if not isinstance(dims, list | tuple) or not dims:
        return None
    reduced = {dim % rank for dim in dims if isinstance(dim, int)}
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if axis in reduced:
        return None
    return axis if keeps else axis - sum(dim < axis for dim in reduced)


def _axis_of_view(before: Sequence[int], axis: int, after: Sequence[int]) -> int | None:
    """The axis with as many elements before it and as many in it."""
    ahead = prod(before[:axis])
    axes = [i for i, length in enumerate(after) if length == before[axis] and prod(after[:i]) == ahead]
    return axes[-1] if axes else None


def _axis_of_permutation(node: fx.Node, axis: int, rank: int) -> int | None:
    if node.target is aten.transpose.int:
        pair = (_axis(node, 1, rank), _axis(node, 2, rank))
        return pair[1 - pair.index(axis)] if axis in pair else axis
    if node.target is aten.permute.default and isinstance(dims := node.args[1], Iterable):
        return [dim % rank for dim in dims].index(axis)  # type: ignore[operator]
    return None
