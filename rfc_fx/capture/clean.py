"""Clean: operations of an exported graph that change nothing are removed, and none depends on the memory layout of the example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from rfc_fx.capture.gathered_masks import gather_bytes
from rfc_fx.capture.host_constants import fold_host_constants
from rfc_fx.ir.ops import aten, remove_dead, value

_CHECKS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)


_DROPOUT = frozenset({aten.dropout.default, aten.feature_dropout.default})


_CASTS = frozenset({aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default, aten.type_as.default})


def _is_dropout_of_inference(node: fx.Node) -> bool:
    return node.target in _DROPOUT and node.args[2] is False


def _is_cast_to_itself(node: fx.Node) -> bool:
    if node.target not in _CASTS:
        return False
    before, after = value(node.all_input_nodes[0]), value(node)
    return (
        isinstance(before, Tensor)
        and (before.dtype, before.device, before.layout) == (after.dtype, after.device, after.layout)
        and node.kwargs.get("memory_format") is None
        and not node.kwargs.get("copy", False)
    )


def _is_factor_one(node: fx.Node) -> bool:
    if node.target not in (aten.div.Tensor, aten.mul.Tensor) or not isinstance(node.args[0], fx.Node) or node.kwargs:
        return False
    before, after = value(node.args[0]), value(node)
    return bool(node.args[1] == 1) and isinstance(before, Tensor) and bool(before.dtype == after.dtype)


class Rule(NamedTuple):
    """Operations that the operand may stand for."""

    matches: Callable[[fx.Node], bool]
    why: str


IDENTITIES = (
    Rule(_is_dropout_of_inference, "dropout outside of training returns its operand; dead-code elimination keeps it as impure"),
    Rule(_is_cast_to_itself, "a cast to the type, device and layout that the operand has"),
    Rule(_is_factor_one, "a rescaling that is off is exact, and its division costs more than the operations around it"),
)


def _is_sum_of_another_integer(node: fx.Node) -> bool:
    dtype = node.kwargs.get("dtype") if node.target is aten.cumsum.default else None
    return isinstance(dtype, torch.dtype) and not dtype.is_floating_point and dtype is not torch.int64 and not _is_floating(node.args[0])


def _is_floating(node: Any) -> bool:
    tensor = value(node)
    return isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())


def _cast_behind(node: fx.Node) -> None:
    """Let a running sum be one of int64, cast behind it: Inductor makes the former of a constant's, and forgets the type."""
    dtype = node.kwargs["dtype"]
    node.kwargs = {name: given for name, given in node.kwargs.items() if name != "dtype"}
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(aten.to.dtype, (node, dtype))
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    cast.meta = dict(node.meta)
    node.meta["val"] = node.meta["val"].to(torch.int64)


VIEWS_OF_ONE_LAYOUT = frozenset({aten.view.default, aten._unsafe_view.default})
"""Legal for the strides of the example; a reshape is a view where it can be one."""


def clean(graph: fx.Graph, constants: dict[str, Tensor] | None = None) -> None:
    """Erase the checks, put operands in the place of `IDENTITIES`, make views reshapes, gather masks as bytes, and fold host constants."""
    for node in list(graph.nodes):
        if node.target in _CHECKS:
            graph.erase_node(node)
        elif any(rule.matches(node) for rule in IDENTITIES):
            operand = node.args[0]
            assert isinstance(operand, fx.Node)
            node.replace_all_uses_with(operand)
            graph.erase_node(node)
        elif node.target in VIEWS_OF_ONE_LAYOUT:
            node.target = aten.reshape.default
        elif _is_sum_of_another_integer(node):
            _cast_behind(node)
    gather_bytes(graph)
    if constants is not None:
        fold_host_constants(graph, constants)
    remove_dead(graph)
    graph.lint()
