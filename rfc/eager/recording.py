"""Recording a generation in full computation: inputs and outputs of every site, and the magnitude ratios that MagCache needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from rfc.eager.model import cached
from rfc.estimators.base import Coefficients
from rfc.estimators.taylor import Reuse
from rfc.method import Method
from rfc.schedules.fixed import Every
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class RecordingReuse(Reuse):
    """Takes down what every site receives and returns, in the order in which the sites run; every step must be full."""

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False, repr=False)

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return {}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        self.pairs.append((I.detach().clone(), O.detach().clone()))
        return {}

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        raise NotImplementedError("every recorded step is full")

    def method(self) -> Method:
        """Full computation with this record."""
        return Method(estimator=self, schedule=Every(interval=1, warmup=1), name="FullCompute")


def magnitude_ratios(model: nn.Module, generate: Callable[[nn.Module], Any]) -> list[float]:
    """Measure the `ratios` of `rfc.MagCache` for a model, over one generation in full computation.

    `generate(model)` draws with the model it receives, such as `lambda model: sample(model, scheduler, noise)`; each of its calls is a
    step. Raises ValueError where it calls nothing, and where the model has no list of blocks with attention.
    """
    recorder = RecordingReuse()
    generate(cached(model, recorder.method(), "stack"))
    if not recorder.pairs:
        raise ValueError("magnitude_ratios: generate did not call the model that it received")
    return ratios_of([residual for _, residual in recorder.pairs])


def ratios_of(residuals: Sequence[Tensor]) -> list[float]:
    """|r(t)| / |r(t-1)| of the stack's residuals r from one step to the next, per token, mean over tokens and samples; first 1.

    MagCache's calibration (arXiv 2506.09045, its released code).
    """
    norms = [residual.float().norm(dim=-1) for residual in residuals]
    return [1.0, *(float((now / before).mean()) for before, now in pairwise(norms))]
