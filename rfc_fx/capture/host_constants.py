"""Host constants: what a forward computes on the CPU from constants alone is computed once, and lies where the programs run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from rfc_fx.ir.ops import is_mutable, value


def fold_host_constants(graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    """Exchange constants of the CPU, and what comes of them there, for constants on the device of the operation that reads them.

    A program with an operation of the CPU among those of a CUDA device runs as no CUDA graph, and waits for the copy. New constants are
    added to `constants`. A graph whose arguments lie on the CPU stays as it is.
    """
    if not any(_is_elsewhere(value(node)) for node in graph.nodes if node.op == "placeholder"):
        return
    known: dict[fx.Node, Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and isinstance(held := constants.get(str(node.target)), Tensor) and held.device.type == "cpu":
            known[node] = held
        elif node.op == "call_function" and isinstance(value(node), Tensor):
            if all(source in known for source in node.all_input_nodes) and _is_pure(node):
                if not _is_elsewhere(value(node)):
                    known[node] = _computed(node, known)
                elif node.all_input_nodes:
                    node.replace_all_uses_with(_constant(graph, node, _computed(node, known), constants))
                    graph.erase_node(node)
            elif _is_elsewhere(value(node)):
                for source in node.all_input_nodes:
                    if source in known:
                        moved = known[source].to(value(node).device)
                        node.replace_input_with(source, _constant(graph, source, moved, constants))


def _is_elsewhere(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type != "cpu"


def _is_pure(node: fx.Node) -> bool:
    return not is_mutable(node) and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def _computed(node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor:
    arguments, named = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    assert callable(node.target)
    with torch.no_grad():
        result: Tensor = node.target(*arguments, **named)
    return result


def _constant(graph: fx.Graph, after: fx.Node, tensor: Tensor, constants: dict[str, Tensor]) -> fx.Node:
    name = next(name for index in range(len(constants) + 1) if (name := f"host_constant_{index}") not in constants)
    constants[name] = tensor
    with graph.inserting_after(after):
        node = graph.create_node("get_attr", name, name=name)
    node.meta = {**after.meta, "val": tensor}
    return node
