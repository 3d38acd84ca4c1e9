"""Picking: what takes some items out of a sequence; steps take the same ones of every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

Pick = Callable[[Sequence[Any]], Sequence[Any]]


def picker(indices: Sequence[int]) -> Pick:
    """What takes the items at these indices, without a line of Python."""
    if len(indices) == 1:
        return itemgetter(slice(indices[0], indices[0] + 1))
    return itemgetter(*indices) if indices else itemgetter(slice(0))
