"""Traced: the operations of a function of tensors, traced once per process for its owners, shapes, dtypes and device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rfc.ranks import completed_by
from rfc.state import SlotSpec
from rfc_fx.ir.surroundings import surroundings

KEPT = 1024
"""Traces that are kept, some 20 KiB each; those used longest ago go first."""


@dataclass(frozen=True)
class _Function:
    """A function of tensors, told apart by what it depends on."""

    function: Callable[..., Any] = field(compare=False)
    owners: tuple[Any, ...]
    written: str
    """The owners as text: 1 and 1.0 are equal, and are different constants of a graph."""
    specs: tuple[SlotSpec, ...]
    device: torch.device
    surroundings: tuple[Any, ...]
    over: str | None


def traced(
    function: Callable[..., Any], owners: tuple[Any, ...], specs: Sequence[SlotSpec], device: torch.device, over: str | None = None
) -> fx.GraphModule:
    """The aten operations of a function of tensors with these shapes and dtypes on a device.

    `owners`: everything else that the function depends on. What may change under the same name (an object that is no frozen dataclass)
    is traced anew each time. `over`: the group of ranks that sums over tokens are completed over (`rfc.ranks`).
    """
    wanted = _Function(function, owners, repr(owners), tuple(specs), device, surroundings(), over)
    return _kept(wanted) if all(map(_is_constant, owners)) else _trace(wanted)


def all_reduced(values: Tensor, over: str, kind: Literal["sum", "max"] = "sum") -> Tensor:
    """The values of all ranks of a group, reduced; a functional collective, as programs hold them."""
    collectives = torch.ops._c10d_functional
    result: Tensor = collectives.wait_tensor(collectives.all_reduce(values, kind, over))
    return result


def _is_constant(owner: Any) -> bool:
    if isinstance(owner, tuple):
        return all(map(_is_constant, owner))
    if is_dataclass(owner) and not isinstance(owner, type):
        parameters: Any = owner
        return bool(parameters.__dataclass_params__.frozen) and all(_is_constant(getattr(owner, part.name)) for part in fields(owner))
    return owner is None or isinstance(owner, str | int | float | torch.dtype)


def _trace(wanted: _Function) -> fx.GraphModule:
    with FakeTensorMode(), torch.no_grad(), completed_by(None if wanted.over is None else partial(all_reduced, over=wanted.over)):
        fakes = [torch.empty(spec.shape, dtype=spec.dtype, device=wanted.device) for spec in wanted.specs]
        return make_fx(wanted.function)(*fakes)


_kept = lru_cache(KEPT)(_trace)
