"""Published methods with one estimate for all blocks: EasyCache."""

from __future__ import annotations

from rfc.estimators.taylor import Reuse
from rfc.method import Method
from rfc.schedules.output_change import OutputChange


def EasyCache(*, threshold: float = 0.025, warmup: int = 5, num_steps: int | None = None) -> Method:
    """Reuse of the stack's residual, until its output is predicted to have changed enough (arXiv 2507.02860; `OutputChange`).

    The paper's residual is the whole model's, output minus input. Here it is that of all blocks, which exists whatever the shapes of the
    model's input and output, so a skipped step runs the embedding and the head. `num_steps`, where given, makes the last step full.
    """
    schedule = OutputChange(threshold=threshold, warmup=warmup, num_steps=num_steps)
    return Method(estimator=Reuse(), schedule=schedule, granularity="stack", name="EasyCache")
