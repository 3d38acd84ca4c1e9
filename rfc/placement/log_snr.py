"""Full steps placed by the sampler's noise levels, so that no forecast reaches far in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rfc.conditioning import is_uncond
from rfc.estimators.adaptive import AdaptiveNewton
from rfc.method import Method
from rfc.placement.base import PlacedByCount, at_most, check_count, check_nfc, forecast_at
from rfc.placement.nearest import corrections, flow_times, full_steps_at
from rfc.placement.noise_levels import noise_levels
from rfc.placement.weighted import Weighted
from rfc.schedules.base import NoiseLevels, Numbers
from rfc.schedules.fixed import Listed, Placed

DAMPING, FLOW_DAMPING = 0.5, 0.35
"""Of the forecast (`rfc.Newton`); of flows that of `rfc.AdaptiveNewton`, too."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LogSNRPlaced(PlacedByCount):
    """Full steps by the noise levels of a sampler's calls (`full_steps_at`).

    `lambdas`: log(alpha / sigma) at each call of a generation, in their order (None: each generation's own, `bound`); `end`: after the
    last step (None: no noise is left); `is_flow`: alpha = 1 - sigma (`rfc.schedules.base.NoiseLevels`). `uncond`: the count of contexts
    named "uncond" (None: `count`). `corrects`: full steps of a flow are told what `rfc.AdaptiveNewton` corrects them by.
    """

    lambdas: tuple[float, ...] | None = None
    end: float | None = None
    is_flow: bool = False
    corrects: bool = False
    count: int | float | None = None
    uncond: int | float | None = None

    def __post_init__(self) -> None:
        check_count("LogSNR", self.count)
        check_count("LogSNR", self.uncond, "uncond_nfc")
        if self.lambdas is None:
            if self.end is not None:
                raise ValueError(f"LogSNR: end is the noise level after those in lambdas, got end={self.end!r} and no lambdas")
            return
        lambdas = tuple(self.lambdas) if isinstance(self.lambdas, Iterable) else ()
        numbers = lambdas if self.end is None else (*lambdas, self.end)
        if not lambdas or any(isinstance(level, bool) or not isinstance(level, int | float) or math.isnan(level) for level in numbers):
            raise ValueError(
                "LogSNR: lambdas must be log(alpha / sigma) at each call, and end such a number or None, "
                f"got {self.lambdas!r} and {self.end!r}; LogSNR(scheduler, num_steps) reads them from a scheduler"
            )
        object.__setattr__(self, "lambdas", lambdas)
        object.__setattr__(self, "num_steps", len(lambdas))
        if isinstance(self.uncond, int):
            check_nfc("LogSNR", self.uncond, self.length, "uncond_nfc")
        super().__post_init__()

    @property
    def is_bound(self) -> bool:
        return self.lambdas is not None

    @property
    def is_placed(self) -> bool:
        return self.is_bound

    @property
    def nfc(self) -> int | None:  # type: ignore[override]  # not known before the number of steps is
        return super().nfc if self.is_bound else self.count if isinstance(self.count, int) else None

    @cached_property
    def placed(self) -> Placed:
        """The list; while the levels are not known, every step."""
        return self.at(self.place() if self.is_bound else range(Listed.TABLE))

    def at(self, full_steps: Sequence[int]) -> Placed:
        """A list of other full steps, with the clock and the corrections that belong to these levels."""
        num_steps, times, weights = Listed.TABLE, None, None
        if self.lambdas is not None:
            levels, num_steps = NoiseLevels(self.lambdas, self.end, self.is_flow), self.length
            times = flow_times(levels, len(full_steps)) if self.is_flow else None
            weights = None if times is None else corrections(levels, full_steps, times)
        if not self.corrects:
            return Placed(full_steps=full_steps, num_steps=num_steps, unit=self.unit, times=times)
        rows = [(0.0, 0.0)] * num_steps if weights is None else weights
        known = {"times": times, "lambdas": self.lambdas, "end": self.end}
        return Weighted(full_steps=full_steps, num_steps=num_steps, unit=self.unit, weights=rows, **known)  # type: ignore[arg-type]

    @property
    def num_weights(self) -> int:
        return 2 if self.corrects else 0

    @staticmethod
    def weights_at(numbers: Numbers, step: Tensor, k: Tensor) -> Float[Tensor, " W"] | None:
        return Weighted.weights_at(numbers, step, k) if "weights" in numbers else None

    def for_pass(self, name: str) -> LogSNRPlaced:
        if self.uncond is None:
            return self
        return replace(self, count=self.uncond if is_uncond(name) else self.count, uncond=None)

    def place(self) -> tuple[int, ...]:
        assert self.lambdas is not None
        assert self.nfc is not None
        check_nfc("LogSNR", self.nfc, self.length)
        return full_steps_at(NoiseLevels(self.lambdas, self.end, self.is_flow), self.nfc)

    def bound(self, num_steps: int, levels: NoiseLevels | None = None) -> LogSNRPlaced:
        if levels is not None:
            count, uncond = at_most(self.count, num_steps), at_most(self.uncond, num_steps)
            return replace(self, lambdas=levels.lambdas, end=levels.end, is_flow=levels.is_flow, count=count, uncond=uncond)
        if self.lambdas is None:
            raise ValueError("LogSNR: the noise levels of this generation are not known")
        if num_steps != self.num_steps:
            raise ValueError(f"LogSNR: placed for the noise levels of {self.num_steps} calls, got {num_steps} calls and no levels")
        return self

    def __repr__(self) -> str:
        if not self.is_bound:
            counts = {"nfc": self.count, "uncond_nfc": self.uncond}
            return f"LogSNRPlaced({', '.join(f'{name}={count}' for name, count in counts.items() if count is not None)})"
        more = "" if self.uncond is None else f", uncond_nfc={self.uncond}"
        return f"LogSNRPlaced(num_steps={self.num_steps}, nfc={self.nfc}{more})"  # without fifty numbers


def LogSNR(
    scheduler: Any = None,
    num_steps: int | None = None,
    nfc: int | float | None = None,
    *,
    lambdas: Sequence[float] | None = None,
    end: float | None = None,
    is_flow: bool = False,
    order: int | None = None,
    damping: float | None = None,
    uncond_nfc: int | float | None = None,
    **timesteps: Any,
) -> Method:
    """`nfc` full steps where forecasts would reach far in log-SNR; Newton's polynomial is the forecast (`forecast_at`). Not in the papers.

    What a model draws depends on the noise level: layouts come at low log-SNR, details at high. So its outputs move with lambda, half the
    log-SNR, and a sampler that takes long steps in lambda (a cosine schedule at both ends, linear betas at the last steps) needs its full
    steps there (`nearest_steps`). It needs no data, but it has to know the sampler. `LogSNR(nfc=8)` places the steps when a
    generation begins, by its own levels: for `rfc_fx.accelerate`, and where a transformed model knows its source.
    `LogSNR(pipe.scheduler, num_steps=28, nfc=8)` places them now, for wherever else it is used; further keywords go to `set_timesteps`
    (`mu`, `sigmas`); without any and without `num_steps` the scheduler is taken as it stands after a generation of the pipeline.
    `nfc`: how many of the calls are full, or which share of them (None: 28 %); `uncond_nfc`: of guidance's calls without a condition,
    where those are calls of their own, in contexts named "uncond" (None: as `nfc`). The forecast's clock is the placing's: full steps are
    equidistant, or of flows `flow_times`. The forecast of flows is `rfc.AdaptiveNewton`, which corrects full steps, unless `order` (None:
    2) or `damping` (None: 0.5, of flows 0.35) are said; they are those of `rfc.Newton`, which all others have.

    One estimate stands for the residual of all blocks (`Method.default_granularity`), and of flows for what the model returns, unless a
    `rfc_fx.Config` says otherwise: estimates per module have many times the state and no less error (benchmarks/README.md, "Truth").

    In the place of a scheduler: `lambdas`, log(alpha / sigma) at each call of a generation, `end`, after the last step (None: no noise
    is left), and `is_flow`, whether alpha = 1 - sigma, which may be said alone, too. Raises ValueError for a scheduler that has no noise
    levels (`noise_levels`).
    """
    if lambdas is None:
        if scheduler is not None:
            lambdas, end, is_flow = noise_levels(scheduler, num_steps, **timesteps)
        elif num_steps is not None or timesteps:
            raise ValueError("LogSNR: num_steps is of no use without the scheduler; pass pipe.scheduler too, or neither")
    elif scheduler is not None or num_steps is not None or timesteps:
        raise ValueError("LogSNR: lambdas say all of the sampler; pass them alone, or a scheduler with num_steps")
    corrects = is_flow and order is None and damping is None
    schedule = LogSNRPlaced(
        lambdas=lambdas,  # type: ignore[arg-type]
        end=end,
        is_flow=is_flow,
        corrects=corrects,
        count=nfc,
        uncond=uncond_nfc,
    )
    granularity = "prediction" if is_flow else "stack"
    if corrects:
        return Method(estimator=AdaptiveNewton(damping=FLOW_DAMPING), schedule=schedule, default_granularity=granularity, name="LogSNR")
    if damping is None:
        damping = FLOW_DAMPING if is_flow else DAMPING
    return forecast_at(schedule, "LogSNR", 2 if order is None else order, damping, default_granularity=granularity)


def for_flow(method: Method) -> Method:
    """`LogSNR(nfc=n)` without other settings for the flow that it turns out to be for; every other method as it is."""
    schedule = method.schedule
    if isinstance(schedule, LogSNRPlaced) and method == LogSNR(nfc=schedule.count, uncond_nfc=schedule.uncond):
        return LogSNR(nfc=schedule.count, uncond_nfc=schedule.uncond, is_flow=True)
    return method
