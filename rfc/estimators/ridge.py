"""RidgeChebyshev: the polynomial that fits all full steps of a generation, Spectrum's estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator, combine, history_slots, named
from rfc.estimators.relational import positive_definite_inverse
from rfc.state import SHORTEST, Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class RidgeChebyshev(Estimator):
    """Chebyshev polynomials fitted by ridge regression to the outputs of all full steps so far (Spectrum, arXiv 2603.01623).

    With tau(t) = 2 t / `span` - 1 the place in a generation that lasts `span` units of the schedule's clock, T_0 .. T_M the Chebyshev
    polynomials up to `degree` M, and phi(t) = [T_0(tau(t)), .., T_M(tau(t))], over the full steps t_i:

        fit(s) = phi(s)^T (sum_i phi(t_i) phi(t_i)^T + ridge 1)^-1 sum_i phi(t_i) O(t_i),
        O_hat(s) = `weight` fit(s) + (1 - `weight`) (O(t) + k/N (O(t) - O(t+N))).

    In the place of all outputs stand their M + 1 moments, counted from the latest: dO_{m+1} = sum_i T_m(tau(t_i)) (O(t_i) - O(t)). A ridge
    shrinks the fit towards zero, so that outputs that never move are not met exactly.
    """

    degree: int = 4
    ridge: float = 0.1
    weight: float = 1.0
    span: float = 1.0

    def __post_init__(self) -> None:
        where = "RidgeChebyshev"
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or not 0 <= self.degree <= 8:
            raise ValueError(f"{where}: degree must be an integer from 0 to 8, got {self.degree!r}")
        for name, low, high in (("ridge", 1e-4, 1e4), ("weight", 0.0, 1.0), ("span", SHORTEST, 1e9)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{where}: {name} must be a number from {low:g} to {high:g}, got {value!r}")

    @property
    def basis(self) -> int:
        """Number of polynomials, M + 1."""
        return self.degree + 1

    @property
    def orders(self) -> int:
        return self.basis + (self.weight < 1)

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        square = SlotSpec((self.basis, self.basis), torch.float32)
        return {**history_slots("O", O, self.orders), "gram": square, "inverse": square, "place": SlotSpec((1,), torch.float32)}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        is_later = clock.n > 0
        place = torch.where(is_later, old["place"] + 2 * clock.k / self.span, -torch.ones_like(old["place"]))
        before = torch.where(is_later, old["gram"], torch.zeros_like(old["gram"]))
        move = torch.where(is_later, O.float() - old["O"].float(), torch.zeros_like(O, dtype=torch.float32))
        moments = []
        for m in range(self.basis):
            kept = torch.where(is_later, old[f"dO{m + 1}"].float(), torch.zeros_like(move))
            moments.append((kept - before[0, m] * move).to(O.dtype))  # T_0 = 1: the first row holds the sums of T_m
        phi = self.polynomials(place)
        gram = before + phi[:, None] * phi
        damped = [[gram[i, j] + self.ridge * (i == j) for j in range(self.basis)] for i in range(self.basis)]
        inverse = torch.stack([torch.stack(row) for row in positive_definite_inverse(damped)])
        differences = [*moments, move.to(O.dtype)][: self.orders]
        return {**named("O", [O, *differences]), "gram": gram, "inverse": inverse, "place": place}

    def polynomials(self, place: Float[Tensor, "1"]) -> Float[Tensor, " P"]:
        """T_0 .. T_M at a place: T_0 = 1, T_1 = tau, T_m+1 = 2 tau T_m - T_m-1."""
        T = [torch.ones_like(place), place]
        for m in range(1, self.degree):
            T.append(2 * place * T[m] - T[m - 1])
        return torch.cat(T[: self.basis])

    def weights(self, state: State, clock: Clock) -> Float[Tensor, " P"]:
        """The weights of the moments in the forecast."""
        phi = self.polynomials(state["place"] + 2 * clock.k / self.span)
        return self.weight * (state["inverse"] * phi).sum(1)

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        local = (1 - self.weight) * clock.k / clock.N.clamp(min=SHORTEST)
        return [*self.weights(state, clock).unbind(), local][: self.orders]

    def estimate(self, state: State, I: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        """share O(t) + sum_m c_m dO_m(t): the latest output has a share of its own, the weights' sum over all full steps."""
        O = state["O"]
        share = (state["gram"][0] * self.weights(state, clock)).sum() + (1 - self.weight)
        terms = [state[f"dO{i}"] for i in range(1, self.orders + 1)]
        return combine(O.to(torch.promote_types(O.dtype, torch.float32)) * share, terms, self.coefficients(state, I, clock)).to(O.dtype)
