"""Full steps placed by the sampler's noise levels, so that no forecast reaches far in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.conditioning import is_uncond
from rfc.method import Method
from rfc.placement.base import PlacedByCount, at_most, check_count, check_nfc, forecast_at
from rfc.placement.noise_levels import noise_levels
from rfc.schedules.base import NoiseLevels
from rfc.schedules.fixed import Listed, Placed

LIMIT = 5.0
"""Of |lambda|: beyond it a sample is all noise, or all picture, and further away is no further for the model."""


Weight = Literal["angle", "share"]
"""Of a skipped step (`nearest_steps`)."""


DAMPING, FLOW_DAMPING = 0.5, 0.35
"""Of the forecast (`rfc.Newton`). A text-to-image flow with few full steps wants less of the second order than others do."""


CLOSEST = 1e-3
"""Of two calls' times: nearer ones are a repeated call, or have no polynomial between them."""


POWER = 2
"""Of the distance in lambda: a forecast's first missing term (the mean of line and parabola misses half of the second order)."""


@lru_cache(maxsize=256)
def nearest_steps(
    lambdas: tuple[float, ...], end: float | None, nfc: int, *, weight: Weight = "angle", limit: float = LIMIT
) -> tuple[int, ...]:
    """`nfc` steps, step 0 among them, for which the forecasts of all others are nearest to their last full step.

    Minimizes sum_j theta_j (lambda_j - lambda_a(j))^2 over the skipped steps j, exactly, by dynamic programming: a(j) is the last full step
    before j, and theta_j = |atan(sigma_j / alpha_j) - atan(sigma_j+1 / alpha_j+1)| the angle that the sampler's step from j turns the
    sample by, which is what an error of the model's output there is multiplied with. A call that moves nothing by itself (the second of
    Heun's method) counts as the one before. With the `weight` "share" theta_j is the change of sigma / (alpha + sigma), with which a flow's
    sampler multiplies; |lambda| counts up to `limit`. Not in the papers.
    """
    count = len(lambdas)
    at = torch.tensor(lambdas, dtype=torch.float64).clamp(-limit, limit)
    reach = turned(NoiseLevels(lambdas, end), weight) * (at - at[:, None]).abs() ** POWER
    skipped = torch.triu(reach, diagonal=1).cumsum(dim=1)  # row a: of steps a+1 to j
    none = torch.zeros(count, 1, dtype=torch.float64)
    between = torch.cat([none, skipped], dim=1)  # row a, column b: of steps a+1 to b-1, for b up to `count`
    between = between.masked_fill(torch.ones(count, count + 1, dtype=torch.bool).tril(), math.inf)  # b comes after a
    least = torch.full((count,), math.inf, dtype=torch.float64)
    least[0] = 0.0
    came: list[torch.Tensor] = []
    for _ in range(nfc):
        reached, before = (least[:, None] + between).min(dim=0)
        came.append(before)
        least = reached[:-1]
    path = [count]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return tuple(reversed(path[1:]))


def full_steps_at(levels: NoiseLevels, nfc: int) -> tuple[int, ...]:
    """LogSNR's full steps (`nearest_steps`): of a flow with the weight "share", and |lambda| up to 1.5 + nfc / 4, `LIMIT` at most.

    A flow's sampler multiplies the output by a difference of shares of noise; with few full steps those at both ends, where flows are
    smooth, would be missed in between. Chosen on one flow, measured on two (benchmarks/README.md, "Truth").
    """
    if levels.is_flow:
        return nearest_steps(tuple(levels.lambdas), levels.end, nfc, weight="share", limit=flow_limit(nfc))
    return nearest_steps(tuple(levels.lambdas), levels.end, nfc)


def flow_limit(nfc: int) -> float:
    """Of |lambda| of a flow with so many full steps."""
    return min(LIMIT, 1.5 + nfc / 4)


def flow_times(levels: NoiseLevels, nfc: int) -> tuple[float, ...] | None:
    """The clock in which a flow's forecasts are polynomials: L tanh(lambda / L) at each call, L as in `full_steps_at`.

    That is log-SNR where pictures form, and ever slower towards all noise and all picture, where outputs move less and less. None where
    a sampler calls twice at one level. Chosen on two flows; what of it was judged blindly says benchmarks/README.md, "Truth".
    """
    limit = flow_limit(nfc)
    times = tuple(limit * math.tanh(level / limit) for level in levels.lambdas)
    return times if all(b - a > CLOSEST for a, b in pairwise(times)) else None


def turned(levels: NoiseLevels, weight: Weight = "angle") -> Float[Tensor, " N"]:
    """What the sampler's step from each call turns the sample by (`nearest_steps`), float64."""
    lambdas = torch.tensor([*levels.lambdas, math.inf if levels.end is None else levels.end], dtype=torch.float64)
    angles = (torch.atan(torch.exp(-lambdas)) if weight == "angle" else torch.sigmoid(-lambdas)).diff().abs()
    for step in range(1, len(angles)):
        if angles[step] == 0:
            angles[step] = angles[step - 1]
    return angles


@dataclass(frozen=True, kw_only=True, repr=False)
class LogSNRPlaced(PlacedByCount):
    """Full steps by the noise levels of a sampler's calls (`full_steps_at`).

    `lambdas`: log(alpha / sigma) at each call of a generation, in their order (None: each generation's own, `bound`); `end`: after the
    last step (None: no noise is left); `is_flow`: alpha = 1 - sigma (`rfc.schedules.base.NoiseLevels`). `uncond`: the count of contexts
    named "uncond" (None: `count`).
    """

    lambdas: tuple[float, ...] | None = None
    end: float | None = None
    is_flow: bool = False
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
        if self.is_bound:
            assert self.lambdas is not None
            levels = NoiseLevels(self.lambdas, self.end, self.is_flow)
            times = flow_times(levels, self.nfc or 1) if self.is_flow else None
            return Placed(full_steps=self.place(), num_steps=self.length, unit=self.unit, times=times)
        return Placed(full_steps=range(Listed.TABLE), num_steps=Listed.TABLE, unit=self.unit)

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
            counts = {name: at_most(getattr(self, name), num_steps) for name in ("count", "uncond")}
            return replace(self, lambdas=levels.lambdas, end=levels.end, is_flow=levels.is_flow, **counts)
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
    order: int = 2,
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
    where those are calls of their own, in contexts named "uncond" (None: as `nfc`). `order` and `damping` (None: 0.5, of flows 0.35) are
    those of `rfc.Newton`, whose clock is the placing's: full steps are equidistant, or of flows `flow_times`.

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
    schedule = LogSNRPlaced(lambdas=lambdas, end=end, is_flow=is_flow, count=nfc, uncond=uncond_nfc)  # type: ignore[arg-type]
    if damping is None:
        damping = FLOW_DAMPING if is_flow else DAMPING
    return forecast_at(schedule, "LogSNR", order, damping, default_granularity="prediction" if is_flow else "stack")


def for_flow(method: Method) -> Method:
    """`LogSNR(nfc=n)` without other settings for the flow that it turns out to be for; every other method as it is."""
    schedule = method.schedule
    if isinstance(schedule, LogSNRPlaced) and method == LogSNR(nfc=schedule.count, uncond_nfc=schedule.uncond):
        return LogSNR(nfc=schedule.count, uncond_nfc=schedule.uncond, is_flow=True)
    return method
