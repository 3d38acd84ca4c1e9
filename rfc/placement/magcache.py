"""MagCache: full steps placed by measured magnitude ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rfc.estimators.taylor import Reuse
from rfc.method import Method
from rfc.placement.base import PlacedBySettings
from rfc.schedules.base import NoiseLevels, checked_count
from rfc.schedules.fixed import Listed


@dataclass(frozen=True, kw_only=True)
class MagnitudePlaced(PlacedBySettings):
    """Full where the calibrated growth of the residual has left 1 by more than `threshold` since the last full step (`MagCache`)."""

    ratios: Sequence[float]
    threshold: float = 0.06
    max_skip: int = 3
    retention: float = 0.2
    num_steps: int | None = None

    def __post_init__(self) -> None:
        ratios = tuple(self.ratios)
        if not ratios or not all(isinstance(r, int | float) and 0 < r < 1e300 for r in ratios):
            raise ValueError(
                f"MagCache: ratios must be finite numbers above 0, one per step, got {self.ratios!r}; rfc.magnitude_ratios measures them"
            )
        object.__setattr__(self, "ratios", ratios)
        if self.num_steps is None:
            object.__setattr__(self, "num_steps", len(ratios))
        checked_count("MagCache", "num_steps", self.num_steps, 1, Listed.TABLE)
        checked_count("MagCache", "max_skip", self.max_skip, 0)
        if not 0 <= self.retention <= 1:
            raise ValueError(f"MagCache: retention must be in [0, 1], got {self.retention!r}")
        if not self.threshold >= 0:
            raise ValueError(f"MagCache: threshold must be a number >= 0, got {self.threshold!r}")
        super().__post_init__()

    def place(self) -> tuple[int, ...]:
        count = self.length
        ratios = [self.ratios[round(i * (len(self.ratios) - 1) / max(1, count - 1))] for i in range(count)]
        first = max(1, int(self.retention * count + 0.5))
        full_steps, product, error, skipped = [], 1.0, 0.0, 0
        for step in range(count):
            if step >= first:
                product *= ratios[step]
                error += abs(1 - product)
                skipped += 1
                if error <= self.threshold and skipped <= self.max_skip:
                    continue
                product, error, skipped = 1.0, 0.0, 0
            full_steps.append(step)
        return tuple(full_steps)

    def with_threshold(self, threshold: float) -> MagnitudePlaced:
        return replace(self, threshold=threshold)

    def bound(self, num_steps: int, levels: NoiseLevels | None = None) -> MagnitudePlaced:
        return replace(self, num_steps=num_steps)


def MagCache(
    *, ratios: Sequence[float], threshold: float = 0.06, max_skip: int = 3, retention: float = 0.2, num_steps: int | None = None
) -> Method:
    """Reuse of the stack's residual as long as its calibrated growth stays near 1 (arXiv 2506.09045).

    `ratios[t]` = |r(t)| / |r(t-1)| of the residual r from one step to the next, measured once per model and number of steps
    (`rfc.magnitude_ratios`); for another number `num_steps` the nearest are taken, and a generation of yet another
    length warns. A step is skipped while sum |1 - prod ratios| is at most `threshold`, and at most `max_skip` in a row; the first
    `retention` of the steps are full. Known beforehand, so a list.
    """
    schedule = MagnitudePlaced(ratios=ratios, threshold=threshold, max_skip=max_skip, retention=retention, num_steps=num_steps)
    return Method(estimator=Reuse(), schedule=schedule, granularity="stack", name="MagCache")
