"""ToCa and DuCa: between full steps some tokens of the feed-forwards are computed, or nothing at all."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar

from rfc.estimate import Estimator, Reuse
from rfc.schedule import Phased, Schedule, checked_count
from rfc.tokens import Grid, Score, Tokens, countdown


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
