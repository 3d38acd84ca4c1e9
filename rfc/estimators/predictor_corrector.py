"""PredictorCorrector: an ODE solver's step from the latest value, pulled back to the last full step's direction (FoCa)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator, combine, history_slots, named
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Estimator):
    """A BDF2 predictor with Heun's corrector from step to step (FoCa, arXiv 2508.16211, as cache-dit's calibrator has it).

    With F_j the latest value, computed or forecast, d_j = F_j - F_(j-1) and D = (O(t) - O(t+N)) / N the direction between the latest two
    full steps, a skipped step predicts F_j + d_j (BDF2's 4/3 F_j - 1/3 F_(j-1) + 2/3 d_j) and corrects it to F_j + (d_j + D) / 2 (Heun).
    So d_j - D is halved at every step, and no step has to write: with d_0 = O(t) - O_hat(t+1), the change from the step before t to t,

        O_hat(t-k) = O(t) + k D + (1 - 2^-k) (d_0 - D).

    cache-dit takes the difference of full steps for D whatever lies between them; here it is divided by the gap.
    """

    @property
    def orders(self) -> int:
        return 2

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return history_slots("O", O, 2)

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        before = combine(old["O"].float(), [old["dO1"], old["dO2"]], self._coefficients((clock.k - 1).clamp(min=0)))
        D = (O.float() - old["O"].float()) / clock.gap
        differences = (D, O.float() - before - D)
        return named("O", [O, *(torch.where(clock.n > 0, X, torch.zeros_like(X)).to(O.dtype) for X in differences)])

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        return self._coefficients(clock.k)

    @staticmethod
    def _coefficients(k: Tensor) -> Coefficients:
        return [k, 1 - torch.exp2(-k)]
