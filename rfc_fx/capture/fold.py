"""Fold: operations whose result has a shape that depends on values become constants of a traced graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from rfc_fx.ir.ops import aten


def _indices(node: fx.Node) -> list[Any]:
    indices: Any = node.args[1]
    return list(indices)


def masks_of(node: fx.Node) -> list[fx.Node]:
    """The boolean index tensors of an indexing operation."""
    if node.target not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return []
    indices = [i for i in _indices(node) if isinstance(i, fx.Node)]
    return [i for i in indices if isinstance(i.meta.get("val"), Tensor) and i.meta["val"].dtype == torch.bool]


def repeats_of(node: fx.Node) -> list[fx.Node]:
    """The tensor that says how often each item is repeated, of an operation that is not told how many items come of that."""
    if node.target is not aten.repeat_interleave.self_Tensor or node.kwargs.get("output_size") is not None:
        return []
    return [node.args[1]] if isinstance(node.args[1], fx.Node) else []


def shape_depends_on_values(node: fx.Node) -> bool:
    if node.target in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return bool(masks_of(node))
    return bool(repeats_of(node)) or torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def shaped_by(node: fx.Node) -> list[fx.Node]:
    """What decides the shape of an operation whose shape depends on values: masks, numbers of repetitions, or itself."""
    return masks_of(node) or repeats_of(node) or [node]


def fold(module: fx.GraphModule, inputs: list[Tensor]) -> None:
    """Replace what has a shape that depends on values by its value, boolean indices and numbers of repetitions by the places they name."""
    graph = module.graph
    dynamic = [node for node in graph.nodes if shape_depends_on_values(node)]
    folded = {source for node in dynamic for source in shaped_by(node)}
    if not folded:
        return
    values: dict[fx.Node, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in folded:
                values[n] = result
            return result

    with torch.no_grad():
        Keep(module).run(*inputs)

    def constant(value: Tensor, like: fx.Node) -> fx.Node:
        name = f"folded_{sum(1 for n, _ in module.named_buffers() if n.startswith('folded_'))}"
        module.register_buffer(name, value.detach().clone(), persistent=False)
        node = graph.get_attr(name)
        node.meta = {"val": value, "nn_module_stack": like.meta.get("nn_module_stack", {})}
        return node

    for node in dynamic:
        with graph.inserting_before(node):
            if masks := masks_of(node):
                indices: list[Any] = []
                for i in _indices(node):
                    columns = [constant(p, node) for p in values[i].nonzero(as_tuple=True)] if i in masks else [i]
                    indices += columns
                node.args = (node.args[0], indices, *node.args[2:])
            elif repeats := repeats_of(node):
                _select_repeated(node, constant(torch.repeat_interleave(values[repeats[0]]), node))
            else:
                result = values[node]
                if isinstance(result, Tensor):
                    node.replace_all_uses_with(constant(result, node))
                    continue
                parts = [constant(part, node) for part in result]
                for user in list(node.users):
                    user.replace_all_uses_with(parts[int(user.args[1])])
    graph.eliminate_dead_code()
    module.recompile()


def _select_repeated(node: fx.Node, places: fx.Node) -> None:
    """Let a repetition of items be a selection of these places."""
    items: Any = node.args[0]
    dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if dim is None:
        meta = {"val": items.meta["val"].reshape(-1), "nn_module_stack": node.meta.get("nn_module_stack", {})}
        items, dim = node.graph.call_function(aten.reshape.default, (items, [-1])), 0
        items.meta = meta
    node.target, node.args, node.kwargs = aten.index_select.default, (items, dim, places), {}
