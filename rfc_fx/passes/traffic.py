"""Traffic: what each program sends to other ranks, and a digest of programs that is the same on all ranks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from rfc_fx.ir.ops import value
from rfc_fx.ir.plan import Traffic
from rfc_fx.ir.program import Program
from rfc_fx.passes.spread import collectives, name_of

SHARES: Mapping[str, Callable[[int], float]] = {
    "all_to_all_single": lambda n: (n - 1) / n,
    "all_gather_into_tensor": lambda n: n - 1,
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter_tensor": lambda n: (n - 1) / n,
}
"""Bytes that a rank sends in a collective of n ranks, over those of its operand: pairwise exchange, and rings."""


def traffic_of(programs: Mapping[str, Program]) -> dict[str, Traffic]:
    """Collectives by kind, and bytes that a rank sends, in one run of each program; programs without any are left out."""
    found: dict[str, Traffic] = {}
    for phase, program in programs.items():
        nodes = list(collectives(program.graph.nodes))
        if nodes:
            found[phase] = Traffic(dict(Counter(map(name_of, nodes))), round(sum(map(_sent, nodes))))
    return found


def _sent(node: fx.Node) -> float:
    operand = node.args[0]
    tensor = value(operand) if isinstance(operand, fx.Node) else None
    size = tensor.nbytes if isinstance(tensor, Tensor) else 0
    return size * SHARES.get(name_of(node), SHARES["all_gather_into_tensor"])(_ranks(node))


def _ranks(node: fx.Node) -> int:
    from torch.distributed import distributed_c10d

    group = next(str(argument) for argument in reversed(node.args) if isinstance(argument, str))
    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]  # of a name; what Inductor uses
    return int(resolve(group).size())


def digest(programs: Mapping[str, Program]) -> dict[str, str]:
    """A digest of each program: operations, what they read, weights, floating-point constants; equal on all ranks of a group.

    What is a rank's own is left out: sizes, places and names of groups.
    """
    return {phase: _digest(program.module) for phase, program in programs.items()}


def _digest(module: fx.GraphModule) -> str:
    numbers: dict[fx.Node, int] = {}
    lines: list[str] = []
    for node in module.graph.nodes:
        numbers[node] = len(numbers)
        lines.append(f"{node.op} {_target(module, node)} {_written(node, numbers)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _target(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "placeholder":
        return ""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return _digest(called) if isinstance(called, fx.GraphModule) else type(called).__name__
    return str(node.target)


def _written(node: fx.Node, numbers: Mapping[fx.Node, int]) -> list[Any]:
    leaves = pytree.tree_leaves((node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, fx.Node))
    said = [f"%{numbers[leaf]}" if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    return [leaf for leaf in said if isinstance(leaf, str | float | bool | torch.dtype) and not str(leaf).isdigit()]
