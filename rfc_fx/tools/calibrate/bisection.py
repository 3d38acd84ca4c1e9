"""Calibrating: the threshold at which a quantity that falls as the threshold grows has a wanted value. Knows nothing of models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

TOLERANCE = 0.25
"""In full computations: closer than this is reached."""


STRIDE = 1.25
"""The first factor by which a guess is moved; every next one is its square."""


NARROW = 1.01
"""Thresholds this close are one: the quantity jumps between them."""


class Calibrated(NamedTuple):
    """The threshold that came closest, what it gave, and how many were measured."""

    threshold: float
    value: float
    measured: int


def calibrated(
    measure: Callable[[float], float],
    target: float,
    *,
    low: float,
    high: float,
    guess: float | None = None,
    tolerance: float = TOLERANCE,
    most: int = 16,
) -> Calibrated:
    """Bisect the logarithm of the threshold in [low, high] until `measure` (such as the mean NFC) is within `tolerance` of `target`.

    `measure` must not grow with the threshold (a larger one skips more). With a `guess`, the bracket grows from there. A target that
    `measure` jumps over, or that lies outside, gives the closest value met, of two equally close ones the smaller. At most `most`
    thresholds are measured. Raises ValueError unless 0 < low < high.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"calibrated: expected 0 < low < high < inf, got {low} and {high}")
    seen: dict[float, float] = {}

    def see(threshold: float) -> float:
        if threshold not in seen:
            seen[threshold] = measure(threshold)
        return seen[threshold]

    def is_reached() -> bool:
        return any(abs(value - target) <= tolerance for value in seen.values())

    if guess is not None:
        low, high = _bracket(see, target, min(max(guess, low), high), low, high, lambda: is_reached() or len(seen) >= most)
    while not is_reached() and len(seen) < most and high / low > NARROW:
        middle = math.sqrt(low * high)
        if see(middle) > target:
            low = middle
        else:
            high = middle
    if not seen:
        see(math.sqrt(low * high))
    threshold = min(seen, key=lambda at: (abs(seen[at] - target), seen[at]))
    return Calibrated(threshold, seen[threshold], len(seen))


def _bracket(
    see: Callable[[float], float], target: float, start: float, low: float, high: float, is_done: Callable[[], bool]
) -> tuple[float, float]:
    """Thresholds below and above the target, moving away from `start` faster and faster; where there is none, the end of the range."""
    factor, at = STRIDE, start
    grows = see(start) > target
    while not is_done():
        beyond = min(high, at * factor) if grows else max(low, at / factor)
        if beyond == at:
            break
        if (see(beyond) > target) is not grows:
            return (at, beyond) if grows else (beyond, at)
        at, factor = beyond, factor**2
    return (at, high) if grows else (low, at)


def largest_threshold(fits: Callable[[float], bool], *, low: float, high: float, closeness: float = 1.02) -> float | None:
    """The largest threshold in [low, high] at which `fits` holds, to a factor of `closeness`; None where it does not even at `low`.

    `fits` (such as "the PSNR is at least 30 dB") must not come back once it has failed. Raises ValueError unless 0 < low < high.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"largest_threshold: expected 0 < low < high < inf, got {low} and {high}")
    if not fits(low):
        return None
    if fits(high):
        return high
    while high / low > closeness:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
