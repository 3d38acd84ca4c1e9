"""Methods: an estimator, a schedule, and where they apply. The object is the configuration; it is checked when made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from rfc.change import AnchorChange, ProbeChange, StepChange
from rfc.draft import Verified
from rfc.estimate import RFE, Estimator, Reuse, Taylor
from rfc.forecast import Aligned, Hermite, Newton
from rfc.schedule import RCS, Every, Listed, Schedule, checked_count
from rfc.tokens import Tokens, check_tokens


@runtime_checkable
class CachingMethod(Protocol):
    """Anything with an estimator and a schedule; where it applies is `placement`."""

    @property
    def estimator(self) -> Estimator: ...
    @property
    def schedule(self) -> Schedule: ...


class Placement(NamedTuple):
    """Where a method applies."""

    granularity: str | None
    """What one estimate stands for ("module", "block", "stack", "output", "blocks[1:]"); None leaves the choice open."""
    probe: int
    """Leading blocks that every step computes, so that what they add to the stream is the input I; 0: I is the first site's own."""
    tokens: Tokens | None = None
    """Which tokens PARTIAL steps compute; None for a schedule that has none."""


def placement(method: CachingMethod) -> Placement:
    """Where the method applies: its `granularity`, `probe` and `tokens`, where it has them."""
    return Placement(getattr(method, "granularity", None), getattr(method, "probe", 0), getattr(method, "tokens", None))


@dataclass(frozen=True, kw_only=True)
class Method:
    """Any estimator with any schedule, e.g. `Method(estimator=Projective(order=2), schedule=RCS(tau=0.2))`; see `Placement`."""

    estimator: Estimator
    schedule: Schedule
    granularity: str | None = None
    probe: int = 0
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator):
            raise TypeError(f"Method: estimator must be an rfc Estimator such as rfc.Taylor(order=1), got {self.estimator!r}")
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"Method: schedule must be an rfc Schedule such as rfc.Every(interval=4), got {self.schedule!r}")
        checked_count("Method", "probe", self.probe, 0)
        check_tokens(self.estimator, self.schedule.phases, self.tokens)


@dataclass(frozen=True, kw_only=True)
class FullCompute:
    """Every step in full: the model itself, with the bookkeeping of a method around it."""

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return Every(interval=1, warmup=1)


@dataclass(frozen=True, kw_only=True)
class FORA:
    """Reuse of attention and MLP outputs between every `interval`-th step (arXiv 2407.01425)."""

    interval: int = 4
    warmup: int = 2

    def __post_init__(self) -> None:
        _ = self.schedule

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class TaylorSeer:
    """Taylor forecast of attention and MLP outputs between every `interval`-th step (arXiv 2503.06923)."""

    interval: int = 4
    order: int = 2
    warmup: int = 2

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class RFC:
    """Relational feature caching: RFE of order m with RCS of threshold tau (arXiv 2602.19506, sections 3.2 and 3.3).

    `tau` is the one knob: larger skips more. It has no unit (an accumulated relative L1 error) and differs per model and
    number of steps; calibrate it to the number of full computations (NFC) you can afford. `warmup` leading steps are full.
    """

    tau: float = 0.1
    order: int = 1
    warmup: int = 3

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return RFE(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return RCS(tau=self.tau, warmup=self.warmup, order=self.order)


@dataclass(frozen=True, kw_only=True)
class NewtonRCS:
    """RCS decides from the first step on; Newton's polynomial through the full steps it chose is the forecast. Not in the papers.

    What it takes from RFC is the schedule (arXiv 2602.19506, section 3.3), with one leading full step in place of several neighbouring
    ones: differences over a gap of one step say little about the many steps after it. In the place of the estimate stands the polynomial
    that is exact over the unequal gaps RCS leaves (`Newton`). A skipped step needs no site's input, so it is one pass over the state.
    `tau` as in `RFC`.
    """

    tau: float = 0.15
    order: int = 2
    warmup: int = 1

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return Newton(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return RCS(tau=self.tau, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class HiCache:
    """TaylorSeer with scaled Hermite polynomials (arXiv 2508.16984)."""

    interval: int = 4
    order: int = 2
    sigma: float = 0.5
    warmup: int = 2

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return Hermite(order=self.order, sigma=self.sigma)

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class TaylorSeerLite:
    """TaylorSeer of the last block's output alone: a skipped step runs no block (arXiv 2503.06923, the Lite form of its code)."""

    interval: int = 4
    order: int = 2
    warmup: int = 2

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)

    @property
    def granularity(self) -> str:
        return "output"


@dataclass(frozen=True, kw_only=True)
class DeltaDiT:
    """Reuse of what a range of blocks adds to the stream; the others always run (Delta-DiT, arXiv 2406.01125; DeepCache's analogue)."""

    interval: int = 3
    first: int = 1
    """The first block of the range."""
    last: int | None = None
    """The block after the range; None: to the end."""
    warmup: int = 1

    def __post_init__(self) -> None:
        _ = self.schedule, self.granularity

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)

    @property
    def granularity(self) -> str:
        return f"blocks[{self.first}:{'' if self.last is None else self.last}]"


@dataclass(frozen=True, kw_only=True)
class TeaCache:
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
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return StepChange(threshold=self.threshold, coefficients=self.coefficients, warmup=self.warmup, steps=self.steps)

    @property
    def granularity(self) -> str:
        return "stack"


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache:
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
    def estimator(self) -> Estimator:
        return Reuse()

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


@dataclass(frozen=True, kw_only=True)
class MagCache:
    """Reuse of the stack's residual as long as its calibrated growth stays near 1 (arXiv 2506.09045).

    `ratios[t]` = |r(t)| / |r(t-1)| of the residual r from one step to the next, measured once per model and number of steps
    (`rfc.magnitude_ratios`); for another number of `steps` the nearest are taken. A step is skipped while sum |1 - prod ratios| is at most
    `threshold`, and at most `max_skip` in a row; the first `retention` of the steps are full. Known beforehand, so a list.
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

    @property
    def full_steps(self) -> list[int]:
        """The steps that are computed."""
        count = len(self.ratios) if self.steps is None else self.steps
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
        return chosen

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return Listed(steps=self.full_steps)

    @property
    def granularity(self) -> str:
        return "stack"


@dataclass(frozen=True, kw_only=True)
class SpeCa:
    """Taylor drafts, of which the last block is verified; a bad one makes the next step full (arXiv 2509.11628; `Verified`)."""

    base: float = 0.1
    decay: float = 0.01
    floor: float = 0.01
    min_drafts: int = 2
    max_drafts: int = 5
    order: int = 4
    enhanced: int = 3
    steps: int = 50

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return Verified(
            base=self.base,
            decay=self.decay,
            floor=self.floor,
            min_drafts=self.min_drafts,
            max_drafts=self.max_drafts,
            enhanced=self.enhanced,
            steps=self.steps,
        )
