"""Repeat: blocks of a program that are the same but for their weights and state become calls of one region.

torch.compile compiles such a region once (`torch.compiler.nested_compile_region`), so that the time to compile grows with
the number of different blocks and not with the depth. Uncompiled, a region is an ordinary call.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rfc_fx.capture.export import Captured
from rfc_fx.ir.ops import is_view, value
from rfc_fx.ir.program import Program
from rfc_fx.passes.outline import graph_module, in_order

MIN_NODES = 8
"""Fewer operations than this are not worth a call."""


_BLOCK = re.compile(r"(?:^|.*?\.)\d+(?=\.|$)")


class Region(nn.Module):
    """A block's operations with everything it reads as arguments, weights included."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.body = fx.GraphModule(nn.Module(), graph, class_name="Block")
        body = self.body

        def run(*args: Tensor) -> Any:
            return body(*args)

        self._region: Callable[..., Any] = torch.compiler.nested_compile_region(run)

    def forward(self, *args: Tensor) -> Any:
        """Run the block."""
        return self._region(*args)


@dataclass(frozen=True)
class _Block:
    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]

    def key(self) -> str:
        """Equal for two blocks that differ in nothing but what is passed to them."""
        number = {node: i for i, node in enumerate([*self.inputs, *self.nodes])}
        lines = [f"{_kind(node)}" for node in self.inputs]
        for node in self.nodes:
            args = fx.node.map_arg((node.args, node.kwargs), lambda n: _Ref(number[n]))
            lines.append(f"{node.op} {node.target} {args}")
        return "\n".join([*lines, str([number[node] for node in self.outputs])])

    def region(self) -> Region:
        graph = fx.Graph()
        env = {node: graph.placeholder(f"arg_{i}") for i, node in enumerate(self.inputs)}
        for node in self.nodes:
            env[node] = graph.node_copy(node, lambda n: env[n])
        graph.output(tuple(env[node] for node in self.outputs))
        return Region(graph)


class _Ref(int):
    """The number of a node, printed unlike any constant."""

    def __repr__(self) -> str:
        return f"%{int(self)}"


def _kind(node: fx.Node) -> str:
    tensor = value(node)
    if isinstance(tensor, Tensor):
        return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.stride()}"
    return str(node.meta.get("slot"))


def share_repeats(program: Program, captured: Captured) -> fx.GraphModule:
    """Return the program's module with repeated blocks as calls of shared regions; as it was where none repeats."""
    graph = inlined(program.module)
    members = _members(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    blocks = [_block(nodes) for nodes in members.values() if len(nodes) >= MIN_NODES]
    blocks = [block for block in blocks if block.outputs and not _aliases(block) and not _tied(block, program.module)]
    keys = [block.key() for block in blocks]
    often = Counter(keys)
    shared = [(block, key) for block, key in zip(blocks, keys, strict=True) if often[key] > 1]
    done, cyclic = in_order(order, [block.nodes for block, _ in shared])
    if not shared or cyclic:
        return program.module

    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    regions: dict[str, nn.Module] = {}
    names: dict[str, str] = {}
    for item in done:
        if isinstance(item, fx.Node):
            env[item] = new.node_copy(item, lambda n: env[n])
            continue
        block, key = shared[item]
        if key not in names:
            names[key] = f"block_{len(names)}"
            regions[names[key]] = block.region()
        call = new.create_node("call_module", names[key], tuple(env[node] for node in block.inputs))
        for i, node in enumerate(block.outputs):
            env[node] = new.call_function(operator.getitem, (call, i))
            env[node].meta = dict(node.meta)
    used = {str(node.target) for node in new.nodes if node.op == "get_attr"}
    constants = {target: tensor for target, tensor in captured.constants.items() if target in used}
    return graph_module(captured, new, constants, regions, program.phase.capitalize())


def inlined(module: fx.GraphModule) -> fx.Graph:
    """The graph with the operations of called graph modules in place of the calls."""
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(called, fx.GraphModule):
            env[node] = graph.node_copy(node, lambda n: env[n])
            continue
        placeholders = [each for each in called.graph.nodes if each.op == "placeholder"]
        inner = {each: env[given] for each, given in zip(placeholders, node.args, strict=True)}
        env[node] = graph.graph_copy(called.graph, inner)
    return graph


def _members(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The operations of each repeated module, by the path that capture recorded.

    What the passes added (estimates, refreshes, writes) has no path: it belongs to the latest block it reads from, else to
    the only block that reads it.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    path: dict[fx.Node, str | None] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        stack = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
        if stack:
            found = next((match.group() for match in map(_BLOCK.match, stack) if match), None)
            path[node] = found
        else:
            sources = [source for source in node.all_input_nodes if path.get(source) is not None]
            path[node] = path[max(sources, key=order.__getitem__)] if sources else None
    for node in reversed(graph.nodes):
        if node in path and path[node] is None and not node.meta.get("nn_module_stack"):
            readers = {path.get(user) for user in node.users}
            path[node] = readers.pop() if len(readers) == 1 else None
    _own_views(graph, path)
    members: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if (where := path.get(node)) is not None:
            members.setdefault(where, []).append(node)
    return members


def _own_views(graph: fx.Graph, path: dict[fx.Node, str | None]) -> None:
    """Make a block's views of what stands outside again inside it: the arguments of a region must not share memory."""
    mine: dict[tuple[str, fx.Node], fx.Node] = {}

    def own(where: str, node: fx.Node) -> fx.Node:
        if path.get(node) == where or node.op in ("placeholder", "get_attr") or not is_view(node):
            return node
        if (where, node) not in mine:
            sources = {source: own(where, source) for source in node.all_input_nodes}
            copy = mine[where, node] = graph.node_copy(node, lambda n: sources[n])
            path[copy] = where
        return mine[where, node]

    for node in list(graph.nodes):
        if (where := path.get(node)) is not None:
            with graph.inserting_before(node):
                for source in node.all_input_nodes:
                    if (copy := own(where, source)) is not source:
                        node.replace_input_with(source, copy)


def _block(nodes: list[fx.Node]) -> _Block:
    inside = set(nodes)
    inputs = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
    return _Block(nodes, list(inputs), [node for node in nodes if any(user not in inside for user in node.users)])


def _tied(block: _Block, module: fx.GraphModule) -> bool:
    """Whether two weights are the same memory: the arguments of a region must not be."""
    weights = [operator.attrgetter(str(node.target))(module) for node in block.inputs if node.op == "get_attr"]
    return len({weight.untyped_storage()._cdata for weight in weights}) < len(weights)


def _aliases(block: _Block) -> bool:
    """Whether a result shares memory with another or with an argument, which a region must not return."""

    def base(node: fx.Node) -> fx.Node:
        while node in inside and is_view(node):
            node = node.all_input_nodes[0]
        return node

    inside = set(block.nodes)
    bases = [base(node) for node in block.outputs]
    return len(set(bases)) < len(bases) or any(node not in inside for node in bases)
