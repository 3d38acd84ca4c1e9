"""Aligned: DiCache's estimate along the trajectory of the probe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator, history_slots, named
from rfc.ranks import means
from rfc.state import Clock, SlotSpec, State, scalar_shape, shifted_differences


@dataclass(frozen=True, kw_only=True)
class Aligned(Estimator):
    """The change between the last two full steps, as far as a probe has moved beyond it (DiCache, arXiv 2508.17356).

    O_hat(t-k) = O(t+N) + g (O(t) - O(t+N)), g = mean |I(t-k) - I(t+N)| / mean |I(t) - I(t+N)| over the batch, clamped to 1 .. `most`.
    """

    most: float = 1.5

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, int | float) or not self.most >= 1:
            raise ValueError(f"Aligned: most must be a number of at least 1, got {self.most!r}")

    @property
    def orders(self) -> int:
        return 1

    @property
    def needs_input(self) -> bool:
        return True

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        span = SlotSpec(scalar_shape(I.shape, "tensor"), torch.float32)
        return {**history_slots("O", O, 1), **history_slots("I", I, 1), "span": span}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        outputs = shifted_differences(O, self._history(old, "O"), clock)
        inputs = shifted_differences(I, self._history(old, "I"), clock)
        span = means([inputs[1].float().abs()])[0].reshape([1] * I.dim())
        return {**named("O", outputs), **named("I", inputs), "span": span}

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        (moved,) = means([(I.float() - state["I"].float() + state["dI1"].float()).abs()])
        g = torch.where(state["span"] > 0, moved / state["span"], torch.ones_like(state["span"]))
        g = g.clamp(1.0, self.most)
        return [(g - 1.0).reshape([])]
