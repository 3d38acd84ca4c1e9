"""Full steps placed before a generation begins, closer together at both of its ends, and a polynomial through them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

from rfc.placement.base import PlacedMethod, check_nfc
from rfc.schedules.base import checked_count


def placed_steps(nfc: int, steps: int, clustering: float, lean: float = 1.0) -> tuple[int, ...]:
    """`nfc` of `steps` steps, the first and the last among them: between equal gaps (0) and Chebyshev-Lobatto points (1).

    Point i of 0 .. n-1 lies at (1-w) u + w (1 - cos(pi u)) / 2 of the way, u = (i / (n-1))^lean, rounded to a step; steps that would fall
    together move apart. The gaps this gives are then put in the order of the unrounded ones, so that they grow towards the middle and
    shrink after it: a long gap after a short one that rounding alone put there makes a polynomial run away. A `lean` above 1 moves
    all towards the first step, one below towards the last. Raises ValueError unless 1 <= nfc <= steps and 0 <= clustering <= 1.
    """
    checked_count("Chebyshev", "steps", steps, 1)
    check_nfc("Chebyshev", nfc, steps)
    if isinstance(clustering, bool) or not isinstance(clustering, int | float) or not 0 <= clustering <= 1:
        raise ValueError(f"Chebyshev: clustering must be from 0 (equal gaps) to 1 (Chebyshev-Lobatto points), got {clustering!r}")
    if nfc == 1:
        return (0,)
    last = steps - 1
    ways = [(i / (nfc - 1)) ** lean for i in range(nfc)]
    points = [last * ((1 - clustering) * u + clustering * (1 - math.cos(math.pi * u)) / 2) for u in ways]
    places = [round(point) for point in points]
    for i in range(1, nfc):
        places[i] = max(places[i], places[i - 1] + 1)
    places[-1] = last
    for i in reversed(range(nfc - 1)):
        places[i] = min(places[i], places[i + 1] - 1)
    wanted = [round(b - a, 9) for a, b in pairwise(points)]
    by_length = sorted(range(nfc - 1), key=wanted.__getitem__)
    gaps = dict(zip(by_length, sorted(b - a for a, b in pairwise(places)), strict=True))
    return tuple(accumulate((gaps[i] for i in range(nfc - 1)), initial=0))


@dataclass(frozen=True, kw_only=True)
class Chebyshev(PlacedMethod):
    """`nfc` full steps of `steps`, denser at both ends; Newton's polynomial through them is the forecast (`PlacedMethod`). Unpublished.

    Caching forecasts a site's output by a polynomial through its latest full steps. Such a polynomial runs away between equally spaced
    points, most at the ends of the range (Runge); Chebyshev-Lobatto points, dense at both ends, are the remedy of interpolation. Rounded
    to whole steps they begin with several gaps of one step and a long one after them, so the way is gone in part (`clustering`).
    It knows nothing but the number of steps; where the sampler's noise levels are known, `rfc.LogSNR` places them better.
    `steps` is the number of calls of a generation, `nfc` how many of them are full (None: 28 %).
    """

    nfc: int | None = None
    steps: int = 50
    order: int = 2
    clustering: float = 0.8
    damping: float = 0.5

    def places(self, nfc: int) -> tuple[int, ...]:
        return placed_steps(nfc, self.steps, self.clustering)
