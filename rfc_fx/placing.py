"""Placing full steps: a local search for the list that makes a measured error smallest. Knows nothing of models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rfc.chebyshev import Chebyshev, placed_steps

Steps = tuple[int, ...]


class Found(NamedTuple):
    """The best list, its error, and how many lists were measured."""

    steps: Steps
    error: float
    measured: int


def starts(nfc: int, steps: int) -> list[Steps]:
    """Lists to begin a search with, more or less dense at both ends or at one of them."""
    made = [placed_steps(nfc, steps, clustering, lean) for lean in (1.0, 0.8, 1.25) for clustering in (Chebyshev.clustering, 0.35, 0.85)]
    return list(dict.fromkeys(made))


def best_placed(measure: Callable[[Steps], float], begin: Sequence[Steps], steps: int, *, most: int) -> Found:
    """From the best of `begin`, move single full steps, and runs of them, by two steps or one while the error falls; step 0 stays.

    At most `most` lists are measured, those of `begin` first. A list for which no move helps ends the search. The order of the moves is the
    same every time. Raises ValueError unless all of `begin` rise from 0 to below `steps` and have one length, and for `most` below 1.
    """
    for start in begin:
        if not start or start[0] != 0 or list(start) != sorted({*start}) or start[-1] >= steps or len(start) != len(begin[0]):
            raise ValueError(f"best_placed: begin must be lists of one length that rise from 0 to below {steps}, got {list(start)}")
    if most < 1 or not begin:
        raise ValueError(f"best_placed: most must be at least 1 and begin not empty, got {most} and {len(begin)} lists")
    errors = {start: measure(start) for start in begin[:most]}
    order, best, stride = random.Random(0), min(errors, key=errors.__getitem__), 2
    while True:
        before = best
        moves = list(_moves(len(best), stride))
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
