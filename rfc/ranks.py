"""Ranks: sums over all tokens where each of several processes holds a part of them.

Alone a process holds all tokens, and nothing is added. A compiler that splits the sequence says how sums are completed (`completed_by`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

_COMPLETE: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("complete", default=None)


@contextmanager
def completed_by(complete: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Sums inside are completed over ranks by this function of a (K,) float32 tensor, an all-reduce; None: they are whole already."""
    token = _COMPLETE.set(complete)
    try:
        yield
    finally:
        _COMPLETE.reset(token)


def is_split() -> bool:
    """Whether the tokens lie on several ranks."""
    return _COMPLETE.get() is not None


def summed(*parts: Tensor) -> tuple[Tensor, ...]:
    """Each of these sums over tokens, of any shapes, with the other ranks' parts added: float32, one all-reduce for all of them.

    For schedules and estimators of one's own: whatever is reduced over tokens and then decides or weighs has to pass here.
    """
    complete = _COMPLETE.get()
    if complete is None:
        return parts
    whole = complete(torch.cat([part.float().reshape(-1) for part in parts]))
    lengths = [part.numel() for part in parts]
    return tuple(piece.reshape(part.shape) for piece, part in zip(whole.split(lengths), parts, strict=True))


def means(values: Sequence[Float[Tensor, "*S"]]) -> list[Float[Tensor, ""]]:
    """The mean of each tensor over all its elements, those of the other ranks included; one all-reduce for all of them."""
    if _COMPLETE.get() is None:
        return [value.mean() for value in values]
    counts = [torch.full((), float(value.numel()), device=value.device) for value in values]
    whole = summed(*(value.float().sum() for value in values), *counts)
    return [total / count for total, count in zip(whole[: len(values)], whole[len(values) :], strict=True)]
