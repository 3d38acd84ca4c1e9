"""Complex operation: one operation on complex numbers as operations on their parts, by torch's own decompositions (`ComplexTensor`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.complex_tensor import ComplexTensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rfc_fx.ir.ops import aten, is_mutable, value

log = logging.getLogger("rfc_fx")


@dataclass(frozen=True)
class Pair:
    """Real and imaginary part of one value of the graph."""

    re: Any
    im: Any


def _polar(length: Tensor, angle: Tensor) -> Tensor:
    return ComplexTensor(length * angle.cos(), length * angle.sin())


def _viewed(pairs: Tensor) -> Tensor:
    return ComplexTensor(pairs.select(-1, 0), pairs.select(-1, 1))


def _padded(sequences: list[Any], batch_first: bool = False, padding: float = 0.0, side: str = "right") -> Tensor:
    longest = max(len(one) for one in sequences)

    def part(parts: list[Tensor], fill: float) -> Tensor:
        missing = [longest - len(one) for one in parts]
        ends = [(0, 0) * (one.dim() - 1) + ((0, m) if side == "right" else (m, 0)) for one, m in zip(parts, missing, strict=True)]
        padded = [aten.constant_pad_nd.default(one, end, fill) for one, end in zip(parts, ends, strict=True)]
        return torch.stack(padded, 0 if batch_first else 1)

    return ComplexTensor(part([one.re for one in sequences], padding), part([one.im for one in sequences], 0.0))


def _filled(factory: Any) -> Callable[..., Tensor]:
    """Zeros, ones and the like of a complex type: the imaginary part is zero."""

    def make(*args: Any, dtype: torch.dtype, **kwargs: Any) -> Tensor:
        re = factory(*args, dtype=dtype.to_real(), **kwargs)
        return ComplexTensor(re, torch.zeros_like(re))

    return make


_OWN: Mapping[Any, Callable[..., Tensor]] = {
    aten.view_as_complex.default: _viewed,
    aten.complex.default: ComplexTensor,
    aten.polar.default: _polar,
    aten.pad_sequence.default: _padded,
    **{factory: _filled(factory) for factory in (aten.zeros.default, aten.ones.default, aten.empty.memory_format)},
}
"""Operations that make complex numbers without an operand of type ComplexTensor, or that torch composes of such."""


def is_complex(node: fx.Node) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in pytree.tree_leaves(value(node)))


@dataclass
class Traced:
    """The operations that stand for one."""

    graph: fx.Graph
    results: list[Any]
    spec: pytree.TreeSpec
    pairs: list[bool]
    """Of each result, whether it is complex: two of the trace's."""


def parts_of(given: Any) -> Iterator[fx.Node]:
    if isinstance(given, Pair):
        yield from (given.re, given.im)
    elif isinstance(given, fx.Node):
        yield given


def kind(given: Any) -> str:
    """What an operation's trace depends on: of tensors all but their values."""
    tensors = [value(node) for node in parts_of(given)]
    described = [f"{one.shape} {one.stride()} {one.dtype} {one.device}" for one in tensors]
    return f"{type(given).__name__} {described}" if tensors else repr(given)


def on_pairs(node: fx.Node, given: list[Any], spec: pytree.TreeSpec, mode: FakeTensorMode) -> Traced | None:
    """The operation on pairs; None where torch has no decomposition of it."""
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    target: Any = _OWN.get(node.target, node.target)
    found: list[Any] = []

    def run(*parts: Tensor) -> list[Tensor]:
        rest = iter(parts)
        operands: list[Any] = []
        for one in given:
            if isinstance(one, Pair):
                operands.append(ComplexTensor(next(rest), next(rest)))
            else:
                operands.append(next(rest) if isinstance(one, fx.Node) else one)
        if pointwise and node.target not in _OWN:
            operands = [_promoted(one, value(node)) for one in operands]
        args, kwargs = pytree.tree_unflatten(operands, spec)
        results, result_spec = pytree.tree_flatten(target(*args, **kwargs))
        found[:] = [result_spec, [isinstance(one, ComplexTensor) for one in results]]
        return [part for one in results for part in ((one.re, one.im) if isinstance(one, ComplexTensor) else (one,))]

    try:
        with mode, torch.no_grad():
            operands = [value(part) for one in given for part in parts_of(one)]  # one placeholder each, also where two are the same tensor
            fakes = [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device) for one in operands]
            graph = make_fx(run)(*fakes).graph
    except Exception as error:
        log.debug("%s has no decomposition on pairs", node.target, exc_info=error)
        return None
    if any(is_complex(one) or one.op == "get_attr" or is_mutable(one) for one in graph.nodes):
        return None
    results: Any = graph.output_node().args[0]
    return Traced(graph, list(results), *found)


def _promoted(operand: Any, result: Any) -> Any:
    """A real operand of a complex result as a complex one: torch's decompositions would cast it to a complex type."""
    if not (isinstance(result, Tensor) and result.is_complex()) or isinstance(operand, ComplexTensor):
        return operand
    dtype = result.dtype.to_real()
    if isinstance(operand, Tensor):
        return ComplexTensor(operand.to(dtype), torch.zeros_like(operand, dtype=dtype))
    if isinstance(operand, complex | float | int) and not isinstance(operand, bool):
        parts = (torch.full((), part, dtype=dtype, device=result.device) for part in (complex(operand).real, complex(operand).imag))
        return ComplexTensor(*parts)
    return operand
