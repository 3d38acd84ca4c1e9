"""Placing full steps: a local search for the list that makes a measured error smallest. Knows nothing of models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

Steps = tuple[int, ...]


class Found(NamedTuple):
    """The best list, its error, and how many lists were measured."""

    steps: Steps
    error: float
    measured: int


def best_placed(measure: Callable[[Steps], float], start: Steps, steps: int, *, most: int) -> Found:
    """Move single full steps, and runs of them, by two steps or one while the error falls; step 0 stays.

    At most `most` lists are measured, `start` first. A list for which no move helps ends the search. The order of the moves is the same
    every time. Raises ValueError for a `start` that does not rise from 0 to below `steps`, and for `most` below 1.
    """
    if not start or start[0] != 0 or list(start) != sorted({*start}) or start[-1] >= steps:
        raise ValueError(f"best_placed: start must rise from 0 to below {steps}, got {list(start)}")
    if most < 1:
        raise ValueError(f"best_placed: most must be at least 1, got {most}")
    errors = {start: measure(start)}
    order, best, stride = random.Random(0), start, 2
    while True:
        before = best
        moves = list(_moves(len(start), stride))
        order.shuffle(moves)
        for move in moves:
            moved = _moved(best, *move)
            if moved in errors or moved[-1] >= steps or any(b <= a for a, b in itertools.pairwise(moved)):
                continue
            if len(errors) == most:
                return Found(best, errors[best], most)
            errors[moved] = measure(moved)
            if errors[moved] < errors[best]:
                best = moved
        if best == before and stride == 1:
            return Found(best, errors[best], len(errors))
        if best == before:
            stride = 1


def _moves(count: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first, after last, by): every single step but step 0, and runs to either side of every gap."""
    for i in range(1, count):
        for by in (-stride, stride):
            yield i, i + 1, by
            if 1 < i < count - 1:
                yield i, count, by
                yield 1, i, by


def _moved(steps: Steps, first: int, last: int, by: int) -> Steps:
    return (*steps[:first], *(step + by for step in steps[first:last]), *steps[last:])
