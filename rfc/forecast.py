"""More ways to choose the coefficients of O + sum_i c_i dO_i: Hermite polynomials, Newton's polynomial, alignment to a probe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import factorial

import torch
from torch import Tensor

from rfc.estimate import Coefficients, Estimator, Taylor, check_order, history_slots, named
from rfc.state import Clock, SlotSpec, State, scalar_shape, shifted_differences


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
        check_order("Newton", self.order, 1, 4)
        if isinstance(self.damping, bool) or not isinstance(self.damping, int | float) or not 0 <= self.damping <= 1:
            raise ValueError(f"Newton: damping must be from 0 (a line) to 1 (the polynomial), got {self.damping!r}")

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
        known = torch.arange(self.order, device=O.device) < clock.n
        return {**named("O", fresh), "ages": torch.where(known, ages, torch.zeros_like(ages))}

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        c = [clock.k]
        for i in range(self.order - 1):
            c.append(self.damping * c[i] * (clock.k + state["ages"][i]))
        return c


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
        span = inputs[1].float().abs().mean().reshape([1] * I.dim())
        return {**named("O", outputs), **named("I", inputs), "span": span}

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        moved = (I.float() - state["I"].float() + state["dI1"].float()).abs().mean()
        g = torch.where(state["span"] > 0, moved / state["span"], torch.ones_like(state["span"]))
        g = g.clamp(1.0, self.most)
        return [(g - 1.0).reshape([])]
