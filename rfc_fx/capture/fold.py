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


def shape_depends_on_values(node: fx.Node) -> bool:
    if node.target in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return bool(masks_of(node))
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def fold(module: fx.GraphModule, inputs: list[Tensor]) -> None:
    """Replace what has a shape that depends on values by its value, and boolean indices by the places they name."""
    graph = module.graph
    dynamic = [node for node in graph.nodes if shape_depends_on_values(node)]
    folded = {node for node in dynamic if not masks_of(node)} | {mask for node in dynamic for mask in masks_of(node)}
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
