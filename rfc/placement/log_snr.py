"""Full steps placed by the sampler's noise levels, so that no forecast reaches far in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from rfc.placement.base import PlacedMethod, check_nfc
from rfc.placement.noise_levels import noise_levels

LIMIT = 5.0
"""Of |lambda|: beyond it a sample is all noise, or all picture, and further away is no further for the model."""


POWER = 2
"""Of the distance in lambda: a forecast's first missing term (the mean of line and parabola misses half of the second order)."""


@lru_cache(maxsize=256)
def nearest_steps(lambdas: tuple[float, ...], end: float | None, nfc: int) -> tuple[int, ...]:
    """`nfc` steps, step 0 among them, for which the forecasts of all others are nearest to their last full step.

    Minimizes sum_j theta_j (lambda_j - lambda_a(j))^2 over the skipped steps j, exactly, by dynamic programming: a(j) is the last full step
    before j, and theta_j = |atan(sigma_j / alpha_j) - atan(sigma_j+1 / alpha_j+1)| the angle that the sampler's step from j turns the
    sample by, which is what an error of the model's output there is multiplied with. A call that moves nothing by itself (the second of
    Heun's method) counts as the one before. Not in the papers.
    """
    count = len(lambdas)
    levels = torch.tensor([*lambdas, math.inf if end is None else end], dtype=torch.float64)
    turned = torch.atan(torch.exp(-levels)).diff().abs()
    for step in range(1, count):
        if turned[step] == 0:
            turned[step] = turned[step - 1]
    at = levels[:-1].clamp(-LIMIT, LIMIT)
    reach = turned * (at - at[:, None]).abs() ** POWER
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
    chosen = [count]
    for before in reversed(came):
        chosen.append(int(before[chosen[-1]]))
    return tuple(reversed(chosen[1:]))


@dataclass(frozen=True, kw_only=True, repr=False)
class LogSNR(PlacedMethod):
    """`nfc` full steps where forecasts would reach far in log-SNR; Newton's polynomial is the forecast (`PlacedMethod`). Not in the papers.

    What a model draws depends on the noise level: layouts come at low log-SNR, details at high. So its outputs move with lambda, half the
    log-SNR, and a sampler that takes long steps in lambda (a cosine schedule at both ends, linear betas at the last steps) needs its full
    steps there (`nearest_steps`). It needs no data, but it has to know the sampler: `LogSNR.of(pipe.scheduler, steps=50)`.

    `lambdas`: log(alpha / sigma) at each call of a generation, in their order; `end`: after the last step (None: no noise is left). `nfc`:
    how many of the calls are full (None: 28 %). A sampler with other levels of the same number gets the full steps of these.
    """

    lambdas: tuple[float, ...]
    end: float | None = None
    nfc: int | None = None
    order: int = 2
    damping: float = 0.5

    def __post_init__(self) -> None:
        given = tuple(self.lambdas) if isinstance(self.lambdas, Iterable) else ()
        numbers = given if self.end is None else (*given, self.end)
        if not given or any(isinstance(one, bool) or not isinstance(one, int | float) or math.isnan(one) for one in numbers):
            raise ValueError(
                "LogSNR: lambdas must be log(alpha / sigma) at each call, and end such a number or None, "
                f"got {self.lambdas!r} and {self.end!r}; LogSNR.of(scheduler, steps) reads them from a scheduler"
            )
        object.__setattr__(self, "lambdas", given)
        super().__post_init__()

    @classmethod
    def of(cls, scheduler: Any, steps: int | None = None, nfc: int | None = None, **timesteps: Any) -> LogSNR:
        """By the noise levels of a scheduler: `LogSNR.of(pipe.scheduler, steps=28, nfc=8)`; ValueError where it has none (`noise_levels`).

        Further keywords go to its `set_timesteps` (`mu`, `sigmas`); without any and without `steps` it is taken as it stands after a
        generation of the pipeline.
        """
        lambdas, end = noise_levels(scheduler, steps, **timesteps)
        return cls(lambdas=lambdas, end=end, nfc=nfc)

    def __repr__(self) -> str:
        return f"LogSNR(steps={self.steps}, nfc={self.full}, order={self.order}, damping={self.damping})"  # not fifty numbers

    @property
    def steps(self) -> int:
        return len(self.lambdas)

    def places(self, nfc: int) -> tuple[int, ...]:
        check_nfc("LogSNR", nfc, self.steps)
        return nearest_steps(self.lambdas, self.end, nfc)
