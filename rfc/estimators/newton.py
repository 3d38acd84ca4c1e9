"""Newton: the polynomial through the latest full steps, at any distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator, check_order, history_slots, named
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class Newton(Estimator):
    """The polynomial of degree m through the latest m + 1 full steps, wherever they lie. Not in the papers.

    O_hat(t-k) = O(t) + sum_i O[t, .., t_i] prod_{j<i} (k + t_j - t), with Newton's divided differences and t_j the full steps before t.
    Taylor's recursion, which the papers use, is this for order 1, and neither exact nor this for order 2 and more.
    `damping` w weighs term i by w^(i-1): 1 is the polynomial, 0 the line through the latest two, and 0.5 at order 2 the mean of both, whose
    errors have opposite signs where the output bends less and less.
    """

    order: int = 2
    damping: float = 1.0

    def __post_init__(self) -> None:
        where = type(self).__name__
        check_order(where, self.order, 1, 4)
        if isinstance(self.damping, bool) or not isinstance(self.damping, int | float) or not 0 <= self.damping <= 1:
            raise ValueError(f"{where}: damping must be from 0 (a line) to 1 (the polynomial), got {self.damping!r}")

    @property
    def orders(self) -> int:
        return self.order

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return {**history_slots("O", O, self.order), "ages": SlotSpec((self.order,), torch.float32)}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        gap = clock.gap
        ages = torch.cat([gap.reshape(1), gap + old["ages"][:-1]])  # times since the full steps before this one
        fresh = [O]
        for i, before in enumerate(self._history(old, "O")[:-1]):
            difference = ((fresh[i].float() - before.float()) / ages[i]).to(O.dtype)
            fresh.append(torch.where(clock.n > i, difference, torch.zeros_like(difference)))
        is_known = torch.arange(self.order, device=O.device) < clock.n
        return {**named("O", fresh), "ages": torch.where(is_known, ages, torch.zeros_like(ages))}

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        c = [clock.k]
        for i in range(self.order - 1):
            c.append(self.damping * c[i] * (clock.k + state["ages"][i]))
        return c
