"""Full steps at gaps that grow: Spectrum's schedule."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from rfc.placement.base import MOST_STEPS, PlacedBySettings, check_count, check_nfc
from rfc.schedules.base import NoiseLevels, Unit, checked_count

GROWTH = 0.75
"""Of the window at each full step: 14 full steps of 50."""

FINEST = 1000
"""Parts of 1 in which a growth is looked for; the window is rounded to as many."""


def growing_window(num_steps: int, leading: int, window: float, growth: float) -> tuple[int, ...]:
    """The `leading` steps, then steps floor(window) apart, where the window grows by `growth` at each (arXiv 2603.01623, its code)."""
    steps, last = list(range(min(leading, num_steps))), leading - 1
    while (last := last + math.floor(window)) < num_steps:
        steps.append(last)
        window = round(window + growth, 3)
    return tuple(steps)


@dataclass(frozen=True, kw_only=True)
class GrowingWindow(PlacedBySettings):
    """The first `leading` steps are full, then steps at gaps that begin with `window` and grow by `growth` each (`growing_window`).

    An estimator counts time in generations (`unit`), so that it knows how far a step is on the way.
    """

    num_steps: int = 50
    leading: int = 5
    window: float = 2.0
    growth: float = GROWTH
    unit: Unit = "generation"

    def place(self) -> tuple[int, ...]:
        checked_count("GrowingWindow", "num_steps", self.num_steps, 1, MOST_STEPS)
        checked_count("GrowingWindow", "leading", self.leading, 1)
        for name, low in (("window", 1), ("growth", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= MOST_STEPS:
                raise ValueError(f"GrowingWindow: {name} must be a number from {low} to {MOST_STEPS}, got {value!r}")
        return growing_window(self.num_steps, self.leading, self.window, self.growth)

    @property
    def nfc(self) -> int:
        return len(self.full_steps)

    def with_nfc(self, nfc: int | float | None) -> GrowingWindow:
        """The rule with so many full steps: its growth if it has them, else the middle of those that give them.

        Fewer steps lead where no growth leaves so few full ones, and the window begins with 1 where none leaves so many. Raises ValueError
        where that does not do either: at least 2 are full.
        """
        check_count("GrowingWindow", nfc)
        if nfc is None:
            return replace(self, growth=GROWTH)
        count = max(min(2, self.num_steps), round(nfc * self.num_steps)) if isinstance(nfc, float) else nfc
        check_nfc("GrowingWindow", count, self.num_steps)
        if count == self.nfc:
            return self
        leading = max(1, min(self.leading, count - 1))
        window = self.window if count <= len(growing_window(self.num_steps, leading, self.window, 0)) else 1.0

        def least(most: int) -> int:
            """The least growth, in parts of 1, that leaves at most so many full steps."""
            parts = range(MOST_STEPS * FINEST)
            return bisect_left(parts, True, key=lambda part: len(growing_window(self.num_steps, leading, window, part / FINEST)) <= most)

        low, high = least(count), least(count - 1) - 1
        if high < low:
            raise ValueError(f"GrowingWindow: no growth leaves {count} full steps of {self.num_steps}; choose another number of at least 2")
        high = min(high, low + self.num_steps * FINEST)  # with the fewest full steps any larger growth will do
        return replace(self, leading=leading, window=window, growth=(low + high) // 2 / FINEST)

    def bound(self, num_steps: int, levels: NoiseLevels | None = None) -> GrowingWindow:
        return replace(self, num_steps=num_steps, leading=min(self.leading, num_steps))
