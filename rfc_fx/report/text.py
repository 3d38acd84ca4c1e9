"""The guarded graph as text."""

from __future__ import annotations

from typing import Any

from torch import fx

from rfc_fx.ir.ops import select, shape
from rfc_fx.passes.guard import Guarded


def guarded_text(guarded: Guarded, block: str | None = None) -> str:
    """The guarded graph, one line a node with shapes; `block` keeps the nodes of one module path, e.g. `blocks.0`."""
    lines = []
    for node in guarded.module.graph.nodes:
        path = path_of(node)
        if node.op == "get_attr" or (block is not None and path != block and not path.startswith(f"{block}.")):
            continue
        lines.append(_line(node))
    return "\n".join(lines)


def path_of(node: fx.Node) -> str:
    """Path of the module or site a node belongs to."""
    if node.target is select:
        return str(node.kwargs["site"])
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths else ""


def _line(node: fx.Node) -> str:
    arguments = ", ".join(map(_argument, node.args))
    named = "".join(f", {key}={_argument(item)}" for key, item in node.kwargs.items() if item is not None)
    size = "x".join(map(str, shape(node))) or "-"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name}: {size} = {target.removesuffix('.default')}({arguments}{named})"


def _argument(argument: Any) -> str:
    """A weight by its own name, without the path; anything else as it stands."""
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return str(argument.target).rsplit(".", 1)[-1]
    if isinstance(argument, list | tuple):
        return f"[{', '.join(map(_argument, argument))}]"
    return str(argument)
