"""Attention in bfloat16 as torch computes it: the exporter rounds its scale to the type of the queries, torch's kernels do not."""

from __future__ import annotations

import torch
import torch.utils._pytree as pytree
from torch import fx

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def attend_in_float32(module: fx.GraphModule) -> None:
    """Let attention between tensors in bfloat16 be computed in float32 and rounded once, in place; in branches as well."""
    for graph in [one.graph for one in module.modules() if isinstance(one, fx.GraphModule)]:
        for node in graph.find_nodes(op="call_function", target=ATTENTION):
            if node.meta["val"].dtype is torch.bfloat16:
                _widen(graph, node)


def _widen(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_before(node):
        inputs = {value: _cast(graph, value, torch.float32) for value in node.all_input_nodes if value.meta["val"].dtype is torch.bfloat16}
    node.args, node.kwargs = pytree.tree_map_only(fx.Node, lambda value: inputs.get(value, value), (node.args, dict(node.kwargs)))
    node.meta["val"] = node.meta["val"].float()
    with graph.inserting_after(node):
        rounded = _cast(graph, node, torch.bfloat16)
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


def _cast(graph: fx.Graph, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    cast = graph.call_function(torch.ops.aten._to_copy.default, (value,), {"dtype": dtype})
    cast.meta["val"] = value.meta["val"].to(dtype)
    return cast
