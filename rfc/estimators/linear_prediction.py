"""Linear prediction: a linear combination of the latest full steps, by weights that the schedule has for each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.base import MOST_ORDER, Coefficients, Estimator, check_order, combine, history_slots, named
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class LinearPrediction(Estimator):
    """O_hat = O(t) + sum_i c_i D_i with the changes D_i = O(t_(i-1)) - O(t_i) between neighbouring full steps t = t_0 > t_1 > ..

    The weights c_1 .. c_m of each step are the schedule's (`rfc.Weighted`), fitted where full computation was recorded (`rfc.fitted`) or
    to the samples that come of them (`rfc.refined`); L2P (arXiv 2604.26365) trains such weights by descent. The first output counts as a
    change from zero. A full step but the first has weights as well, and t_0 is the step itself then: it hands on O(t) + sum_i c_i D_i
    and remembers O(t). So it can take back what the forecasts before it have done to the sample, a corrector without an evaluation of
    its own as in UniPC (arXiv 2302.04867); and a list with all its changes is a non-stationary solver (arXiv 2403.01329), which moves
    the sample by a combination of all outputs so far.
    """

    order: int = 3

    def __post_init__(self) -> None:
        check_order("LinearPrediction", self.order, 1, MOST_ORDER)

    @property
    def orders(self) -> int:
        return self.order

    @property
    def num_weights(self) -> int:
        return self.order

    @property
    def corrects(self) -> bool:
        return True

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return history_slots("O", O, self.order)

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        return named("O", [O, *self._changes(old, O, clock)])

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        assert clock.weights is not None
        return list(clock.weights.unbind())

    def correction(self, old: State, I: Float[Tensor, "N *S D"], O: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        assert clock.weights is not None
        return combine(torch.zeros_like(O), self._changes(old, O, clock), list(clock.weights.unbind()))

    def _changes(self, old: State, O: Tensor, clock: Clock) -> list[Tensor]:
        """D_1 .. D_m where O is the latest output: the first one of a generation counts as a change from zero, before it there is none."""
        last, *changes = (
            torch.where(clock.n > count, old[name], torch.zeros_like(O))
            for count, name in [(0, "O"), *((i - 1, f"dO{i}") for i in range(1, self.order))]
        )
        return [(O.float() - last.float()).to(O.dtype), *changes]
