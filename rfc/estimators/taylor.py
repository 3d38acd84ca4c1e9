"""Reuse, and polynomials in the number of skipped steps: Taylor and Hermite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import factorial

import torch
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator, Remembered, check_order, history_slots, named
from rfc.state import Clock, SlotSpec, State, divided_differences


@dataclass(frozen=True, kw_only=True)
class Reuse(Remembered):
    """O_hat(t-k) = O(t): the output of the last full step again (FORA, arXiv 2407.01425)."""

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        return []


@dataclass(frozen=True, kw_only=True)
class Taylor(Estimator):
    """O_hat(t-k) = O(t) + sum_{i=1..m} k^i / i! f_i(t), f_i the divided differences (TaylorSeer, arXiv 2503.06923).

    `order` is m >= 1; raises ValueError otherwise.
    """

    order: int = 1

    def __post_init__(self) -> None:
        check_order("Taylor", self.order, 1)

    @property
    def orders(self) -> int:
        return self.order

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return history_slots("O", O, self.order)

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        return named("O", divided_differences(O, self._history(old, "O"), clock))

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        return taylor_coefficients(self.order, clock.k)


def taylor_coefficients(order: int, k: Tensor) -> Coefficients:
    """c_i = k^i / i! for i = 1 .. order."""
    return [k, *(k**i / float(factorial(i)) for i in range(2, order + 1))][:order]


@dataclass(frozen=True, kw_only=True)
class Hermite(Taylor):
    """Taylor's terms with scaled Hermite polynomials for the powers of k (HiCache, arXiv 2508.16984).

    c_i = sigma^i H_i(sigma k) / i!, with H_i the physicists' polynomials: H_1(x) = 2x, H_{i+1}(x) = 2x H_i(x) - 2i H_{i-1}(x).
    """

    sigma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, int | float) or not 0 < self.sigma < math.inf:
            raise ValueError(f"Hermite: sigma must be a number above 0, got {self.sigma!r}")

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        x = self.sigma * clock.k
        H = [torch.ones_like(x), 2 * x]
        for i in range(1, self.order):
            H.append(2 * x * H[i] - 2 * i * H[i - 1])
        return [self.sigma**i / factorial(i) * H[i] for i in range(1, self.order + 1)]
