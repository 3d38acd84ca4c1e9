"""The published methods, each with its published settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from rfc.estimators.aligned import Aligned
from rfc.estimators.base import Estimator
from rfc.estimators.newton import Newton
from rfc.estimators.predicted import Predicted
from rfc.estimators.relational import RFE
from rfc.estimators.taylor import Hermite, Reuse, Taylor
from rfc.predictor import checksum
from rfc.schedules.base import Schedule, checked_count
from rfc.schedules.change import AnchorChange, ProbeChange, StepChange
from rfc.schedules.fixed import Every, Listed, Phased
from rfc.schedules.rcs import RCS
from rfc.schedules.verified import Verified
from rfc.token_selection import Grid, Score, Tokens, countdown


class Checked(ABC):
    """A method whose settings are checked when it is made, by making what they are for."""

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    @abstractmethod
    def estimator(self) -> Estimator: ...

    @property
    @abstractmethod
    def schedule(self) -> Schedule: ...


class EveryNth(Checked):
    """What methods with an `interval` and leading full steps (`warmup`) share; their fields are their own."""

    interval: int
    warmup: int

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)


class Reusing:
    """What methods share that keep the last output or residual as it is."""

    @property
    def estimator(self) -> Estimator:
        return Reuse()


@dataclass(frozen=True, kw_only=True)
class FORA(Reusing, EveryNth):
    """Reuse of attention and MLP outputs between every `interval`-th step (arXiv 2407.01425)."""

    interval: int = 4
    warmup: int = 2


@dataclass(frozen=True, kw_only=True)
class TaylorSeer(EveryNth):
    """Taylor forecast of attention and MLP outputs between every `interval`-th step (arXiv 2503.06923)."""

    interval: int = 4
    order: int = 2
    warmup: int = 2

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)


@dataclass(frozen=True, kw_only=True)
class HiCache(EveryNth):
    """TaylorSeer with scaled Hermite polynomials (arXiv 2508.16984)."""

    interval: int = 4
    order: int = 2
    sigma: float = 0.5
    warmup: int = 2

    @property
    def estimator(self) -> Estimator:
        return Hermite(order=self.order, sigma=self.sigma)


@dataclass(frozen=True, kw_only=True)
class TaylorSeerLite(EveryNth):
    """TaylorSeer of the last block's output alone: a skipped step runs no block (arXiv 2503.06923, the Lite form of its code)."""

    interval: int = 4
    order: int = 2
    warmup: int = 2

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)

    @property
    def granularity(self) -> str:
        return "output"


@dataclass(frozen=True, kw_only=True)
class SpeCa(Checked):
    """Taylor drafts, of which the last block is verified; a bad one makes the next step full (arXiv 2509.11628; `Verified`)."""

    base: float = 0.1
    decay: float = 0.01
    floor: float = 0.01
    min_drafts: int = 2
    max_drafts: int = 5
    order: int = 4
    enhanced: int = 3
    steps: int = 50

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


@dataclass(frozen=True, kw_only=True)
class RFC(Checked):
    """Relational feature caching: RFE of order m with RCS of threshold tau (arXiv 2602.19506, sections 3.2 and 3.3).

    `tau` is the one knob: larger skips more. It has no unit (an accumulated relative L1 error) and differs per model and
    number of steps; calibrate it to the number of full computations (NFC) you can afford. `warmup` leading steps are full.
    """

    tau: float = 0.1
    order: int = 1
    warmup: int = 3

    @property
    def estimator(self) -> Estimator:
        return RFE(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return RCS(tau=self.tau, warmup=self.warmup, order=self.order)


@dataclass(frozen=True, kw_only=True)
class NewtonRCS(Checked):
    """RCS decides from the first step on; Newton's polynomial through the full steps it chose is the forecast. Not in the papers.

    What it takes from RFC is the schedule (arXiv 2602.19506, section 3.3), with one leading full step in place of several neighbouring
    ones: differences over a gap of one step say little about the many steps after it. In the place of the estimate stands the polynomial
    that is exact over the unequal gaps RCS leaves (`Newton`). A skipped step needs no site's input, so it is one pass over the state.
    `tau` as in `RFC`. Measured: a third of the error of TaylorSeer on one model, more than that on another (README, "How good"):
    a polynomial does not know how far the input has moved, `RFE` does. Try it on yours before relying on it.
    """

    tau: float = 0.15
    order: int = 2
    warmup: int = 1

    @property
    def estimator(self) -> Estimator:
        return Newton(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return RCS(tau=self.tau, warmup=self.warmup)


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
class _TokenWise:
    """What both share; the fields without a word here are those of `Tokens`."""

    interval: int
    """N, before it is made longer in the first steps and shorter in the last (`countdown`)."""
    steps: int = 50
    ratio: float
    score: Score
    freshness: float = 0.25
    bonus: float
    grid: Grid | None = None
    parts: int = 4
    step_weight: float
    layer_weight: float
    emphasis: float = 2.5

    ALTERNATES: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("interval", "steps"):
            checked_count(type(self).__name__, name, getattr(self, name), 1)
        _ = self.schedule

    @property
    def tokens(self) -> Tokens:
        return Tokens(**{field.name: getattr(self, field.name) for field in fields(Tokens)})

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return _schedule(self.interval, self.steps, self.tokens, self.ALTERNATES)

    @property
    def granularity(self) -> str:
        return "module"


@dataclass(frozen=True, kw_only=True)
class ToCa(_TokenWise):
    """Attention is reused, and of each feed-forward the tokens that receive most attention are computed (arXiv 2410.05317; `Tokens`).

    The defaults are those for DiT with 50 steps of DDIM. As published the number of tokens changes from step to step; here it takes `parts`
    values. Another `interval` or number of `steps` compiles nothing.
    """

    interval: int = 4
    ratio: float = 0.07
    score: Score = "attention"
    bonus: float = 0.6
    step_weight: float = 2.0
    layer_weight: float = -0.2


@dataclass(frozen=True, kw_only=True)
class DuCa(_TokenWise):
    """Between full steps it takes turns: one runs the final layer alone, the next is as ToCa's (arXiv 2412.18911; `Tokens`).

    The step before a full one is always as ToCa's: for N = 3 full, final layer, tokens; for N = 4 full, tokens, final layer, tokens.
    `score`: "value", the paper's V-caching, needs no attention map; "random" is its second version's; "attention" that of its code's README
    for DiT, of which the other defaults are.
    """

    interval: int = 3
    ratio: float = 0.05
    score: Score = "value"
    bonus: float = 0.8
    step_weight: float = 0.4
    layer_weight: float = 0.8

    ALTERNATES: ClassVar[bool] = True


@lru_cache(maxsize=64)
def _schedule(interval: int, steps: int, tokens: Tokens, alternates: bool) -> Phased:
    """The phase of each step, from how many are left until the next full one: odd PARTIAL, even PARTIAL too, or REUSE (`alternates`)."""
    chosen = [
        "FULL" if not left else "REUSE" if alternates and left % 2 == 0 else tokens.phase(step, steps)
        for step, left in enumerate(countdown(interval, steps))
    ]
    return Phased(steps=chosen, phases=("FULL", *tokens.phases, *(("REUSE",) if alternates else ())), period=float(interval))


@dataclass(frozen=True, kw_only=True)
class DisCa:
    """Full steps by a list, or every `interval`-th; between them a predictor in the place of the blocks (arXiv 2602.05449).

    `predictor` is the folder of a predictor trained for the model (`python -m benchmarks.train_predictor` makes one); None only in
    presets. `steps`, where given, are the full ones, counted from 0. Raises PredictorError where the folder holds none.
    """

    predictor: str | Path | None
    steps: Sequence[int] | None = None
    interval: int = 2
    warmup: int = 1
    sha256: str = field(init=False, default="", repr=False)
    """Of the weights, as they were when the method was made."""

    def __post_init__(self) -> None:
        if self.steps is not None:
            object.__setattr__(self, "steps", Listed(steps=self.steps).steps)
        if self.predictor is not None:
            object.__setattr__(self, "predictor", str(self.predictor))
            object.__setattr__(self, "sha256", checksum(Path(self.predictor)))
        _ = self.schedule

    @property
    def estimator(self) -> Estimator:
        return Predicted(folder="" if self.predictor is None else str(self.predictor), sha256=self.sha256)

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup) if self.steps is None else Listed(steps=self.steps)

    @property
    def granularity(self) -> str:
        return "output"
