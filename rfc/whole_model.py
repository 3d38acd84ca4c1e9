"""Published methods with one estimate for all blocks: EasyCache, Spectrum."""

from __future__ import annotations

from rfc.estimators.ridge import RidgeChebyshev
from rfc.estimators.taylor import Reuse
from rfc.method import Method
from rfc.placement.growing import GROWTH, GrowingWindow
from rfc.schedules.output_change import OutputChange


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
