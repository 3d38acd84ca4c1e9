"""Methods that reuse what many blocks add to the stream: Delta-DiT, TeaCache, First-Block cache, DiCache, MagCache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rfc.change import AnchorChange, ProbeChange, StepChange
from rfc.estimate import Estimator
from rfc.forecast import Aligned
from rfc.forecasting import EveryNth, Reusing
from rfc.schedule import Placed, Schedule, checked_count


@dataclass(frozen=True, kw_only=True)
class DeltaDiT(Reusing, EveryNth):
    """Reuse of what a range of blocks adds to the stream; the others always run (Delta-DiT, arXiv 2406.01125; DeepCache's analogue)."""

    interval: int = 3
    first: int = 1
    """The first block of the range."""
    last: int | None = None
    """The block after the range; None: to the end."""
    warmup: int = 1

    @property
    def granularity(self) -> str:
        return f"blocks[{self.first}:{'' if self.last is None else self.last}]"


@dataclass(frozen=True, kw_only=True)
class TeaCache(Reusing):
    """Reuse of the whole stack's residual, until the first input has changed enough step by step (arXiv 2411.19108; `StepChange`).

    `threshold` and `coefficients` belong to a model; `steps`, where given, makes the last step full as published.
    """

    threshold: float = 0.1
    coefficients: Sequence[float] = (1.0, 0.0)
    warmup: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", tuple(self.coefficients))
        _ = self.schedule

    @property
    def schedule(self) -> Schedule:
        return StepChange(threshold=self.threshold, coefficients=self.coefficients, warmup=self.warmup, steps=self.steps)

    @property
    def granularity(self) -> str:
        return "stack"


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache(Reusing):
    """The first block always runs; the others' residual is reused while what the first adds stays close to the last full step's.

    ParaAttention's First-Block cache, diffusers' `FirstBlockCacheConfig`; cache-dit's DBCache for `blocks` of more (F8B0: 8) and a `tail`
    of last blocks that always run.
    """

    threshold: float = 0.05
    blocks: int = 1
    tail: int = 0
    warmup: int = 1

    def __post_init__(self) -> None:
        checked_count("FirstBlockCache", "blocks", self.blocks, 1)
        checked_count("FirstBlockCache", "tail", self.tail, 0)
        _ = self.schedule

    @property
    def schedule(self) -> Schedule:
        return AnchorChange(threshold=self.threshold, warmup=self.warmup)

    @property
    def granularity(self) -> str:
        return f"blocks[{self.blocks}:{-self.tail if self.tail else ''}]"

    @property
    def probe(self) -> int:
        return self.blocks


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


@dataclass(frozen=True, kw_only=True)
class DiCache:
    """The first blocks are a probe: they decide, and say how far the stack's residual has moved (arXiv 2508.17356).

    `steps`, where given, makes the last step full; published: the first fifth of the steps too (`warmup` = steps // 5 + 1).
    """

    threshold: float = 0.4
    depth: int = 1
    warmup: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        checked_count("DiCache", "depth", self.depth, 1)
        _ = self.schedule

    @property
    def estimator(self) -> Estimator:
        return Aligned()

    @property
    def schedule(self) -> Schedule:
        return ProbeChange(threshold=self.threshold, warmup=self.warmup, steps=self.steps)

    @property
    def granularity(self) -> str:
        return "stack"

    @property
    def probe(self) -> int:
        return self.depth
