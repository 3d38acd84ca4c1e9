"""Placing full steps: a local search for the forecast and the list that make a measured error smallest. Knows nothing of models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from math import inf
from typing import Generic, NamedTuple, TypeVar

from rfc.placement.chebyshev import ChebyshevPlaced, placed_steps

Steps = tuple[int, ...]


Forecast = TypeVar("Forecast", bound=Hashable)


class BestPlaced(NamedTuple, Generic[Forecast]):
    """The best forecast with the best list, their error, and how many pairs were measured."""

    forecast: Forecast
    steps: Steps
    error: float
    measured: int


def starts(nfc: int, steps: int, own: Sequence[int]) -> list[Steps]:
    """Lists to begin a search with: a method's own, and others that are more or less dense at both ends or at one of them."""
    lists = [tuple(own)]
    lists += [
        placed_steps(nfc, steps, clustering, lean) for lean in (1.0, 0.8, 1.25) for clustering in (ChebyshevPlaced.clustering, 0.6, 0.35)
    ]
    return list(dict.fromkeys(lists))


def best_placed(
    measure: Callable[[Forecast, Steps], float],
    forecasts: Sequence[Forecast],
    begin: Sequence[Steps],
    steps: int,
    *,
    most: int,
    enough: float = -inf,
) -> BestPlaced[Forecast]:
    """Choose a forecast, and move its full steps, by two steps or one, while the error falls; step 0 stays.

    The forecast is the one with the least error at the first list of `begin`. It is measured at the others too; from the best of them on
    single full steps and runs of them are moved. At most `most` pairs are measured, and the search ends at an error of `enough` or below
    and at a list for which no move helps. The order of the moves is the same every time. Raises ValueError unless all of `begin` rise
    from 0 to below `steps` and have one length, for `most` below 1 and without a forecast.
    """
    for start in begin:
        if not start or start[0] != 0 or list(start) != sorted({*start}) or start[-1] >= steps or len(start) != len(begin[0]):
            raise ValueError(f"best_placed: begin must be lists of one length that rise from 0 to below {steps}, got {list(start)}")
    if most < 1 or not begin or not forecasts:
        got = f"{most}, {len(begin)} lists and {len(forecasts)} forecasts"
        raise ValueError(f"best_placed: most must be at least 1, begin and forecasts not empty, got {got}")
    errors: dict[tuple[Forecast, Steps], float] = {}

    def ended() -> bool:
        return len(errors) == most or min(errors.values(), default=inf) <= enough

    def best() -> tuple[Forecast, Steps]:
        return min(errors, key=errors.__getitem__)

    def measured(forecast: Forecast, full_steps: Steps) -> None:
        if not ended() and (forecast, full_steps) not in errors:
            errors[forecast, full_steps] = measure(forecast, full_steps)

    for forecast in forecasts:
        measured(forecast, begin[0])
    forecast, _ = best()
    for start in begin:
        measured(forecast, start)
    order, stride = random.Random(0), 2
    while stride and not ended():
        before, moves = best(), list(_moves(len(begin[0]), stride))
        order.shuffle(moves)
        for move in moves:
            moved = _moved(best()[1], *move)
            if moved[-1] < steps and all(a < b for a, b in itertools.pairwise(moved)):
                measured(forecast, moved)
        if best() == before:
            stride -= 1
    return BestPlaced(*best(), errors[best()], len(errors))


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
