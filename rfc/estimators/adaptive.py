"""Newton's forecast where outputs may be rough: as much of it as the last slope was worth, and a corrector at full steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.base import Coefficients, check_order, combine
from rfc.estimators.newton import Newton
from rfc.state import Clock, SlotSpec, State, inners, scalar_shape

HEARD = 0.5
"""Of what was measured at the full steps before, that counts at this one."""

TRUST = 1.3
"""Times the measured share of the slope: least squares on rough outputs tell less than what the samples want."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveNewton(Newton):
    """O_hat(t-k) = O(t) + b (k O[t, t_1] + w k (k + t_1 - t) O[t, t_1, t_2]): Newton's forecast (`rfc.Newton`), `damping` w, weighed by b.

    b is how much of the slope before t the slope to t was, in the norm of each sample: min(1, 1.3 sum <D_j, D_(j-1)> / sum <D_(j-1),
    D_(j-1)>), not below 0, over the full steps j so far, each weighing half of the one after it, with a slope that went straight on
    put before them; D_j is the slope between neighbouring full steps. Smooth outputs keep the polynomial; of rough ones, whose slopes
    do not last, less is carried on.

    A full step j hands on O(j) + sum_k s g_k / g_j (O~_k - O_hat_k), and remembers O(j): what the forecasts of the steps k before it did
    to the sample is taken back, as far as the parabola O~ through the latest full steps, j among them, tells. That is a corrector without
    an evaluation of its own, as in UniPC (arXiv 2302.04867). The schedule has the sums over k (`rfc.placement.nearest.corrections`).
    Not in the papers.
    """

    damping: float = 0.35
    corrected: bool = True
    """Whether full steps are corrected: where one estimate stands for less than all blocks they are not (`rfc.Method.within`)."""

    def __post_init__(self) -> None:
        check_order("AdaptiveNewton", self.order, 2, 2)
        super().__post_init__()
        if not isinstance(self.corrected, bool):
            raise ValueError(f"AdaptiveNewton: corrected must be True or False, got {self.corrected!r}")

    @property
    def num_weights(self) -> int:
        return 2

    @property
    def corrects(self) -> bool:
        return self.corrected

    def uncorrected(self) -> AdaptiveNewton:
        return replace(self, corrected=False)

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        product = SlotSpec(scalar_shape(O.shape, "sample"), torch.float32)
        return {**super().slots(I, O), "along": product, "square": product}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        new = super().refresh(old, I, O, clock)
        along, square = inners([(new["dO1"], old["dO1"]), (old["dO1"], old["dO1"])], "sample")
        is_first = clock.n < 3  # the first slope that another one came before
        known = torch.where(is_first, square, HEARD * old["along"]), torch.where(is_first, square, HEARD * old["square"])
        for name, measured, before in zip(("along", "square"), (along, square), known, strict=True):
            new[name] = torch.where(clock.n < 2, torch.zeros_like(measured), measured + before)
        return new

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        share = self._share(state)
        return [share * c for c in super().coefficients(state, I, clock)]

    def correction(self, old: State, I: Float[Tensor, "N *S D"], O: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        assert clock.weights is not None
        first, second = clock.weights.unbind()
        age, share = old["ages"][0], self._share(old)
        square = second + age * first
        slope, bend = old["dO1"], old["dO2"]
        change = (O.float() - old["O"].float()) / clock.gap
        line = torch.where(clock.n < 2, first, square / (clock.gap + age))  # with one full step before there is no parabola
        c = [(1 - share) * first - square / (clock.gap + age), -share * self.damping * square]
        taken = combine(line * change, [slope, bend], c).to(O.dtype)
        return torch.where(clock.n > 0, taken, torch.zeros_like(taken))

    @staticmethod
    def _share(state: State) -> Float[Tensor, "..."]:
        along, square = state["along"], state["square"]
        return torch.where(square > 0, TRUST * along / square, torch.ones_like(square)).clamp(0, 1)
