"""What the compiler knows about single operations: which are heavy and what they cost, which only rename data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils.flop_counter import bmm_flop, conv_flop_count, sdpa_flop_count

from rfc.state import SlotSpec

aten = torch.ops.aten


def value(node: fx.Node) -> Any:
    """The fake value that capture recorded for a node (a tensor, a tuple of tensors, a number or None)."""
    return node.meta.get("val")


def shape(node: Any) -> tuple[int, ...]:
    """Shape of a node's tensor; () when it is not a tensor."""
    tensor = value(node) if isinstance(node, fx.Node) else None
    return tuple(int(length) for length in tensor.shape) if isinstance(tensor, Tensor) else ()


def has_known_shape(node: fx.Node) -> bool:
    """Whether no length of a node's tensor depends on values, as those of nonzero do."""
    tensor = value(node)
    return not isinstance(tensor, Tensor) or all(map(is_concrete_int, tensor.shape))  # a torch.SymInt may stand for one number


def _linear(node: fx.Node) -> int:
    return 2 * prod(shape(node)) * shape(node.args[0])[-1]


def _matmul(node: fx.Node) -> int:
    return 2 * prod(shape(node)) * shape(node.args[0])[-1]


def _addmm(node: fx.Node) -> int:
    return 2 * prod(shape(node)) * shape(node.args[1])[-1]


def _bmm(node: fx.Node) -> int:
    return int(bmm_flop(shape(node.args[0]), shape(node.args[1])))


def _convolution(node: fx.Node) -> int:
    return int(conv_flop_count(list(shape(node.args[0])), list(shape(node.args[1])), list(shape(node)), transposed=False))


def _attention(node: fx.Node) -> int:
    q, k, v = (shape(arg) for arg in node.args[:3])
    heads = prod(q[:-2])
    return int(sdpa_flop_count((1, heads, *q[-2:]), (1, heads, *k[-2:]), (1, heads, *v[-2:])))


def _einsum(node: fx.Node) -> int:
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    assert isinstance(operands, list | tuple)
    if len(operands) < 2:
        return 0  # a permutation
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes = {axis: length for term, arg in zip(terms, operands, strict=True) for axis, length in zip(term, shape(arg), strict=False)}
    return 2 * prod(sizes.values())


FLOPS: dict[Any, Callable[[fx.Node], int]] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.mv.default: _matmul,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.baddbmm.default: lambda node: 2 * prod(shape(node)) * shape(node.args[1])[-1],
    aten.scaled_dot_product_attention.default: _attention,
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv3d.padding: _convolution,
    aten.convolution.default: _convolution,
    aten.einsum.default: _einsum,
}
"""Cost of the heavy operations in floating-point operations (a multiply-add is two); formulas of `torch.utils.flop_counter`."""


def flops(nodes: Iterable[fx.Node]) -> int:
    """FLOPs of the nodes, those of called submodules included."""
    total = 0
    for node in nodes:
        if node.op == "call_module":
            owner = node.graph.owning_module
            assert owner is not None
            called = owner.get_submodule(str(node.target))
            if isinstance(called, fx.GraphModule):
                total += flops(called.graph.nodes)
        elif node.target in FLOPS:
            total += FLOPS[node.target](node)
    return total


def is_heavy(node: fx.Node) -> bool:
    """Whether a node is an operation that caching should skip."""
    return node.target in FLOPS and FLOPS[node.target](node) > 0


CASTS = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten._to_copy.default,
        aten.type_as.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.detach_.default,
        aten.clamp.default,
        aten.clip.default,
        aten.nan_to_num.default,
    }
)
"""Operations that keep shape and meaning: the residual stream is the same stream behind them."""


VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
    }
)
"""Operations that keep every element and their order."""


def is_view(node: fx.Node) -> bool:
    """Whether a node returns a view of its first argument (or an item of one): free to recompute, useless to pass on."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and is_view(source)
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(result.alias_info is not None for result in schema.returns) or node.target in VIEWS


def base_of(node: fx.Node) -> fx.Node:
    """The node a view is a view of."""
    while is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def closure(ends: Iterable[fx.Node], follow: Callable[[fx.Node], bool] = lambda node: True) -> set[fx.Node]:
    """The nodes and all that they are made from, as far as `follow` allows: a node that it refuses is left out."""
    seen: set[fx.Node] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node not in seen and follow(node):
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return seen


def remove_dead(graph: fx.Graph) -> None:
    """Erase nodes without users. Only a write to state counts as an effect: attention and dropout do not."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder") and node.target is not aten.copy_.default:
            graph.erase_node(node)


def is_mutable(node: fx.Node) -> bool:
    """Whether an operation writes to one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def spec_of(node: fx.Node) -> SlotSpec:
    """Shape and dtype of a node as a slot."""
    return SlotSpec(shape(node), value(node).dtype)


def select(phase: str, full: Tensor, *, I: Tensor, base: Tensor | None, site: str, forecast: Tensor | None = None) -> Tensor:
    """The value of a site: `full` in phase FULL, its estimate in phase ESTIMATE, which is the `forecast` of a predictor where it has one.

    A marker in the guarded graph: `specialize` replaces it, `Reference` interprets it. Calling it runs nothing.
    """
    raise RuntimeError(f"select({site!r}) is a marker; run the programs made from the guarded graph, or rfc_fx.passes.guard.Reference")


def recall(slot: str) -> Tensor:
    """The tensor that a slot of the state holds: a marker in the guarded graph, as `select` is. Calling it runs nothing."""
    raise RuntimeError(f"recall({slot!r}) is a marker; run the programs made from the guarded graph, or rfc_fx.passes.guard.Reference")
