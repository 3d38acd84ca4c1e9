"""Linear prediction: a linear combination of the latest full steps, by weights that the schedule has for each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator, check_order, history_slots, named
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class LinearPrediction(Estimator):
    """O_hat = O(t) + sum_i c_i D_i with the changes D_i = O(t_(i-1)) - O(t_i) between neighbouring full steps t = t_0 > t_1 > ..

    The weights c_1 .. c_m of each step are the schedule's (`rfc.Weighted`), fitted where full computation was recorded
    (`rfc.fitted`); L2P (arXiv 2604.26365) trains such weights by descent. Where a step is full its output is known, and with it how far
    the forecast was off: O - O_hat. The samples took the forecasts of the steps before with them, so the full step hands on

        O + g (O - O_hat),

    the step's correction g being the schedule's too: a corrector without an evaluation of its own, as in UniPC (arXiv 2302.04867). What
    is remembered is O. 0 hands on O itself.
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_order("LinearPrediction", self.order, 1, 4)

    @property
    def orders(self) -> int:
        return self.order

    @property
    def num_weights(self) -> int:
        return self.order + 1

    @property
    def corrects(self) -> bool:
        return True

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return history_slots("O", O, self.order)

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        latest = (O.float() - old["O"].float()).to(O.dtype)
        changes = [latest, *(old[f"dO{i}"] for i in range(1, self.order))]
        known = [torch.where(clock.n > i, change, torch.zeros_like(change)) for i, change in enumerate(changes)]
        return named("O", [O, *known])

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        assert clock.weights is not None
        return list(clock.weights[: self.order].unbind())

    def correction(self, old: State, I: Float[Tensor, "N *S D"], O: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        assert clock.weights is not None
        g = torch.where(clock.n > 0, clock.weights[self.order], torch.zeros_like(clock.n))
        error = O.float() - self.estimate(old, I, clock).float()
        return torch.where(g == 0, torch.zeros_like(error), g * error).to(O.dtype)
