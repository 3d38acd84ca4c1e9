"""Picking: what takes some items out of a sequence; steps take the same ones of every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

Pick = Callable[[Sequence[Any]], Sequence[Any]]


def picker(indices: Sequence[int]) -> Pick:
    """What takes the items at these indices, without a line of Python where there are two or more."""
    if len(indices) > 1:
        return itemgetter(*indices)
    return (lambda items: (items[indices[0]],)) if indices else (lambda items: ())
