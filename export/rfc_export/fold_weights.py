"""Fold weights: matrix decompositions of weights alone are computed at export; their factors are weights of the programs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from rfc_export.weight_names import Weights
from rfc_fx.ir.ops import aten, closure, remove_dead

DECOMPOSITIONS = frozenset(
    {
        aten.linalg_qr.default,
        aten.linalg_svd.default,
        aten.linalg_eigh.default,
        aten.linalg_cholesky.default,
        aten.linalg_inv.default,
        aten.linalg_pinv.default,
        aten.linalg_solve.default,
    }
)
"""Operations that ONNX does not have. Of weights they are the same in every call, and dear."""


def fold_weights(graph: fx.Graph, held: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """Put factors in the place of `DECOMPOSITIONS` of weights, and return the weights that the graph reads then, by name.

    `held`: those that it reads now. One that is left to be decomposed depends on an argument: ONNX refuses it by name.
    """
    read = dict(held)
    for node in [node for node in graph.nodes if node.target in DECOMPOSITIONS]:
        sources = closure([node])
        if all(source.op in ("get_attr", "call_function") for source in sources):
            _put_factors(graph, node, _computed([each for each in graph.nodes if each in sources], read), read, weights)
            remove_dead(graph)
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return {name: tensor for name, tensor in read.items() if name in names}


def _computed(nodes: list[fx.Node], held: Mapping[str, Tensor]) -> Any:
    """The value of the last of these nodes, which are all that it is made from."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in nodes:
            if node.op == "get_attr":
                values[node] = held[str(node.target)].detach()
            else:
                arguments, named = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                assert callable(node.target)
                values[node] = node.target(*arguments, **named)
    return values[nodes[-1]]


def _put_factors(graph: fx.Graph, node: fx.Node, result: Any, read: dict[str, Tensor], weights: Weights) -> None:
    factors = {node: result} if isinstance(result, Tensor) else {user: result[user.args[1]] for user in node.users}
    assert isinstance(result, Tensor) or all(user.target is operator.getitem for user in factors)
    for place, factor in factors.items():
        factor = factor.contiguous()
        name = weights.name(f"folded.{place.name}", factor)
        read[name] = factor
        with graph.inserting_before(node):
            stored = graph.create_node("get_attr", name)
        stored.meta = {**place.meta, "val": place.meta["val"].contiguous()}
        place.replace_all_uses_with(stored)
