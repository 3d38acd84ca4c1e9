"""MagCache: full steps placed by measured magnitude ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rfc.published import Reusing
from rfc.schedules.base import Schedule, checked_count
from rfc.schedules.fixed import Placed


@dataclass(frozen=True, kw_only=True)
class MagCache(Reusing):
    """Reuse of the stack's residual as long as its calibrated growth stays near 1 (arXiv 2506.09045).

    `ratios[t]` = |r(t)| / |r(t-1)| of the residual r from one step to the next, measured once per model and number of steps
    (`rfc.magnitude_ratios`); for another number of `steps` the nearest are taken, and a generation of yet another
    length warns. A step is skipped while sum |1 - prod ratios| is at most `threshold`, and at most `max_skip` in a row; the first
    `retention` of the steps are full. Known beforehand, so a list.
    """

    ratios: Sequence[float]
    threshold: float = 0.06
    max_skip: int = 3
    retention: float = 0.2
    steps: int | None = None

    def __post_init__(self) -> None:
        given = tuple(self.ratios)
        if not given or not all(isinstance(r, int | float) and math.isfinite(r) and r > 0 for r in given):
            raise ValueError(f"MagCache: ratios must be finite numbers above 0, one per step, got {self.ratios!r}")
        object.__setattr__(self, "ratios", given)
        if self.steps is not None:
            checked_count("MagCache", "steps", self.steps, 1)
        checked_count("MagCache", "max_skip", self.max_skip, 0)
        if not 0 <= self.retention <= 1:
            raise ValueError(f"MagCache: retention must be in [0, 1], got {self.retention!r}")
        if not self.threshold >= 0:
            raise ValueError(f"MagCache: threshold must be a number >= 0, got {self.threshold!r}")

    @cached_property
    def full_steps(self) -> tuple[int, ...]:
        """The steps that are computed."""
        count = self._count
        ratios = [self.ratios[round(i * (len(self.ratios) - 1) / max(1, count - 1))] for i in range(count)]
        first = max(1, int(self.retention * count + 0.5))
        chosen, product, error, skipped = [], 1.0, 0.0, 0
        for step in range(count):
            if step >= first:
                product *= ratios[step]
                error += abs(1 - product)
                skipped += 1
                if error <= self.threshold and skipped <= self.max_skip:
                    continue
                product, error, skipped = 1.0, 0.0, 0
            chosen.append(step)
        return tuple(chosen)

    @property
    def _count(self) -> int:
        return len(self.ratios) if self.steps is None else self.steps

    @cached_property  # asked for several times a step
    def schedule(self) -> Schedule:
        return Placed(steps=self.full_steps, of=self._count)

    @property
    def granularity(self) -> str:
        return "stack"
