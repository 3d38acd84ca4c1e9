"""Published methods with one estimate for all blocks: EasyCache, SeaCache, Spectrum."""

from __future__ import annotations

from typing import Any

import torch

from rfc.estimators.newton import Newton
from rfc.estimators.ridge import RidgeChebyshev
from rfc.estimators.taylor import Reuse
from rfc.method import Method
from rfc.placement.growing import GROWTH, GrowingWindow
from rfc.schedules.output_change import OutputChange
from rfc.schedules.spectral_change import SpectralChange


def EasyCache(*, threshold: float = 0.025, warmup: int = 5, num_steps: int | None = None) -> Method:
    """Reuse of the stack's residual, until its output is predicted to have changed enough (arXiv 2507.02860; `OutputChange`).

    The paper's residual is the whole model's, output minus input. Here it is that of all blocks, which exists whatever the shapes of the
    model's input and output, so a skipped step runs the embedding and the head. `num_steps`, where given, makes the last step full.
    """
    schedule = OutputChange(threshold=threshold, warmup=warmup, num_steps=num_steps)
    return Method(estimator=Reuse(), schedule=schedule, granularity="stack", name="EasyCache")


def Spectrum(
    *,
    num_steps: int = 50,
    warmup: int = 5,
    window: float = 2.0,
    growth: float = GROWTH,
    degree: int = 4,
    ridge: float = 0.1,
    weight: float = 1.0,
) -> Method:
    """Chebyshev polynomials, fitted by ridge regression to the last block's outputs, at a growing window (arXiv 2603.01623).

    `growth` 0.75 has 14 full steps of 50, 3 has 10 (the published settings). A `weight` below 1 mixes in the line through the latest two,
    which its code recommends (0.5 to 1). Not to be taken for `rfc.Chebyshev`, which places full steps at Chebyshev's points.
    """
    schedule = GrowingWindow(num_steps=num_steps, leading=warmup, window=window, growth=growth)
    estimator = RidgeChebyshev(degree=degree, ridge=ridge, weight=weight)
    return Method(estimator=estimator, schedule=schedule, granularity="output", name="Spectrum")


KNOTS = 65
"""Noise levels that are read from a scheduler."""


def SeaCache(
    scheduler: Any = None,
    *,
    threshold: float = 0.25,
    order: int = 1,
    warmup: int = 1,
    num_steps: int | None = None,
    max_skip: int | None = 2,
    power: float = 3.0,
    grid: tuple[int, int] | None = None,
) -> Method:
    """The stack's residual on a line, until the filtered first input has changed enough (arXiv 2602.18993; `SpectralChange`).

    `scheduler` says which noise level a timestep has: one of diffusers with `alphas_cumprod`; any other, or None, is that of flow matching.
    `order` 0 reuses the residual. `grid`: rows and columns of tokens that are no square. `num_steps`, where given: the last step is full.
    """
    if order not in (0, 1) or isinstance(order, bool):
        raise ValueError(f"SeaCache: order must be 0 (reuse) or 1 (a line), got {order!r}")
    levels, span = noise_curve(scheduler)
    schedule = SpectralChange(
        threshold=threshold,
        warmup=warmup,
        num_steps=num_steps,
        max_skip=max_skip,
        power=power,
        levels=levels,
        span=span,
        grid=grid,
    )
    return Method(estimator=Newton(order=1) if order else Reuse(), schedule=schedule, granularity="stack", name="SeaCache")


def noise_curve(scheduler: Any) -> tuple[tuple[float, ...] | None, float]:
    """`levels` and `span` of `SpectralChange` for a scheduler's timesteps."""
    cumulative, config = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler, "config", None)
    if cumulative is None or getattr(config, "use_flow_sigmas", False):
        return None, float(getattr(config, "num_train_timesteps", 1000))
    squared = torch.as_tensor(cumulative).double().cpu().clamp(1e-12, 1 - 1e-12)
    last = len(squared) - 1
    places = torch.linspace(0, 1, KNOTS, dtype=torch.float64) ** 2 * last
    below = places.floor().long()
    level = (squared.log() - (1 - squared).log()) / 2
    return tuple(torch.lerp(level[below], level[(below + 1).clamp(max=last)], places - below).tolist()), float(last)
