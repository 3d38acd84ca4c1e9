"""Chebyshev: full steps closer together at both ends of a generation, and a polynomial through them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from rfc.method import Method
from rfc.placement.base import MOST_STEPS, PlacedByCount, at_most, check_count, check_nfc, forecast_at
from rfc.schedules.base import NoiseLevels, checked_count


def placed_steps(nfc: int, num_steps: int, clustering: float, lean: float = 1.0) -> tuple[int, ...]:
    """`nfc` of `num_steps` steps, the first and the last among them: between equal gaps (0) and Chebyshev-Lobatto points (1).

    Point i of 0 .. n-1 lies at (1-w) u + w (1 - cos(pi u)) / 2 of the way, u = (i / (n-1))^lean, rounded to a step; steps that would fall
    together move apart. The gaps this gives are then put in the order of the unrounded ones, so that they grow towards the middle and
    shrink after it: a long gap after a short one that rounding alone put there makes a polynomial run away. A `lean` above 1 moves
    all towards the first step, one below towards the last. Raises ValueError unless 1 <= nfc <= num_steps and 0 <= clustering <= 1.
    """
    checked_count("Chebyshev", "num_steps", num_steps, 1, MOST_STEPS)
    check_nfc("Chebyshev", nfc, num_steps)
    if isinstance(clustering, bool) or not isinstance(clustering, int | float) or not 0 <= clustering <= 1:
        raise ValueError(f"Chebyshev: clustering must be from 0 (equal gaps) to 1 (Chebyshev-Lobatto points), got {clustering!r}")
    if nfc == 1:
        return (0,)
    last = num_steps - 1
    ways = [(i / (nfc - 1)) ** lean for i in range(nfc)]
    points = [last * ((1 - clustering) * u + clustering * (1 - math.cos(math.pi * u)) / 2) for u in ways]
    steps = [round(point) for point in points]
    for i in range(1, nfc):
        steps[i] = max(steps[i], steps[i - 1] + 1)
    steps[-1] = last
    for i in reversed(range(nfc - 1)):
        steps[i] = min(steps[i], steps[i + 1] - 1)
    lengths = [round(b - a, 9) for a, b in pairwise(points)]
    by_length = sorted(range(nfc - 1), key=lengths.__getitem__)
    gaps = dict(zip(by_length, sorted(b - a for a, b in pairwise(steps)), strict=True))
    return tuple(accumulate((gaps[i] for i in range(nfc - 1)), initial=0))


@dataclass(frozen=True, kw_only=True)
class ChebyshevPlaced(PlacedByCount):
    """Full steps between equal gaps and Chebyshev-Lobatto points (`placed_steps`)."""

    num_steps: int = 50
    count: int | float | None = None
    clustering: float = 0.8

    def place(self) -> tuple[int, ...]:
        checked_count("Chebyshev", "num_steps", self.num_steps, 1, MOST_STEPS)
        check_count("Chebyshev", self.count)
        return placed_steps(self.nfc, self.num_steps, self.clustering)

    def bound(self, num_steps: int, levels: NoiseLevels | None = None) -> ChebyshevPlaced:
        return replace(self, num_steps=num_steps, count=at_most(self.count, num_steps))


def Chebyshev(
    *, nfc: int | float | None = None, num_steps: int = 50, order: int = 2, clustering: float = 0.8, damping: float = 0.5
) -> Method:
    """`nfc` full steps of `num_steps`, denser at both ends; Newton's polynomial through them is the forecast (`forecast_at`). Unpublished.

    Caching forecasts a site's output by a polynomial through its latest full steps. Such a polynomial runs away between equally spaced
    points, most at the ends of the range (Runge); Chebyshev-Lobatto points, dense at both ends, are the remedy of interpolation. Rounded
    to whole steps they begin with several gaps of one step and a long one after them, so the way is gone in part (`clustering`).
    It knows nothing but the number of steps; where the sampler's noise levels are known, `rfc.LogSNR` places them better.
    `num_steps` is the number of calls of a generation, `nfc` how many of them are full, or which share (None: 28 %).
    """
    return forecast_at(ChebyshevPlaced(num_steps=num_steps, count=nfc, clustering=clustering), "Chebyshev", order, damping)
