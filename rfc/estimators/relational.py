"""Estimates from the inputs: RFE and Projective (RFC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator, check_order, history_slots, named
from rfc.estimators.taylor import taylor_coefficients
from rfc.state import Clock, Per, SlotSpec, State, divided_differences, inners, norm, scalar_shape, shifted_differences, sketch, sketch_spec


class Relational(Estimator):
    """Measures how far the input has moved, on the whole of it or on a sketch."""

    order: int
    sketch: int

    def __post_init__(self) -> None:
        if isinstance(self.sketch, bool) or not isinstance(self.sketch, int) or self.sketch < 1:
            where = type(self).__name__
            raise ValueError(f"{where}: sketch must be an integer of at least 1 (1 keeps the whole input), got {self.sketch!r}")

    @property
    def orders(self) -> int:
        return self.order

    @property
    def needs_input(self) -> bool:
        return True

    @property
    def reads_all_inputs(self) -> bool:
        return self.sketch == 1


@dataclass(frozen=True, kw_only=True)
class RFE(Relational):
    """Relational feature estimation: Taylor's direction, the magnitude from how far the input moved (RFC, arXiv 2602.19506).

    O_hat(t-k) = O(t) + s_N ||I(t-k) - I(t)||_2 d / ||d||_2,  d = sum_i k^i/i! f_i,  s_N = ||O(t) - O(t+N)||_2 / ||I(t) - I(t+N)||_2.
    For m = 1 this is O(t) + kappa (O(t) - O(t+N)) with kappa = ||I(t-k) - I(t)|| / ||I(t) - I(t+N)||, and no norm of O is
    needed; for m = 2, ||d|| comes from three inner products kept at the full step. Where a norm to divide by is zero the
    coefficients are Taylor's (kappa = k/N). Norms are float32, per sample, per token or over the whole tensor.
    `sketch`: the input's norms are taken over every `sketch`-th token (channel, where norm="token"), and only those are kept.
    """

    order: int = 1
    norm: Per = "sample"
    sketch: int = 1

    def __post_init__(self) -> None:
        check_order("RFE", self.order, 1, 2)
        if self.norm not in get_args(Per):
            raise ValueError(f"RFE: norm must be one of {', '.join(get_args(Per))}, got {self.norm!r}")
        super().__post_init__()

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        check_tokens("RFE: norm", self.norm, I, O)
        slots = {**history_slots("O", O, self.order), "I": sketch_spec(I, self.sketch, self.norm)}
        slots["speed"] = SlotSpec(scalar_shape(slots["I"].shape, self.norm), torch.float32)
        if self.order == 2:
            product = SlotSpec(scalar_shape(O.shape, self.norm), torch.float32)
            slots |= {"g11": product, "g12": product, "g22": product}
        return slots

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        f = divided_differences(O, self._history(old, "O"), clock)
        I = sketch(I, self.sketch, self.norm)
        speed = norm(I.float() - old["I"].float(), self.norm) / clock.gap
        new = {**named("O", f), "I": I, "speed": torch.where(clock.n > 0, speed, torch.zeros_like(speed))}
        if self.order == 2:
            pairs = ((1, 1), (1, 2), (2, 2))
            products = inners([(f[i], f[j]) for i, j in pairs], self.norm)
            new |= {f"g{i}{j}": product for (i, j), product in zip(pairs, products, strict=True)}
        return new

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        k, speed = clock.k, state["speed"]
        I = sketch(I, self.sketch, self.norm)
        moved = norm(I.float() - state["I"].float(), self.norm)  # ||I(t-k) - I(t)||
        if self.order == 1:
            return [torch.where(speed > 0, moved / speed, k)]
        squared = k**2 * state["g11"] + k**3 * state["g12"] + k**4 / 4 * state["g22"]  # ||d||^2
        length = squared.clamp(min=0).sqrt()
        scale = state["g11"].sqrt() / speed * moved / length
        scale = torch.where((speed > 0) & (length > 0), scale, torch.ones_like(scale))
        return [scale * c for c in taylor_coefficients(2, k)]


@dataclass(frozen=True, kw_only=True)
class Projective(Relational):
    """Projective relational estimation: the input's move, expressed in its past moves, carries over to the output.

    c = argmin || (I(t-k) - I(t)) - sum_i c_i dI_i ||^2 + ridge tr(G)/m ||c||^2,  G_ij = <dI_i, dI_j>,
    O_hat(t-k) = O(t) + sum_i c_i dO_i, with dX_i = X(t + (i-1)N) - X(t + iN), the changes between past full steps.
    Order 1 is the signed form of RFE: it follows a motion that reverses. Exact (up to `ridge`) for affine modules whose
    input stays in the span of its past moves. With no past move at all, c_1 = k/N. Not in the paper.
    `sketch`: the products are taken over every `sketch`-th token (channel, where per="token"), and only those inputs are kept.
    """

    order: int = 2
    per: Literal["sample", "token"] = "sample"
    ridge: float = 1e-4
    sketch: int = 1

    def __post_init__(self) -> None:
        check_order("Projective", self.order, 1, 4)
        if self.per not in ("sample", "token"):
            raise ValueError(f"Projective: per must be sample or token, got {self.per!r}")
        if not isinstance(self.ridge, int | float) or not 1e-5 <= self.ridge < 1:
            raise ValueError(f"Projective: ridge must be in [1e-5, 1), got {self.ridge!r}; smaller is below float32's resolution")
        super().__post_init__()

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        m = self.order
        check_tokens("Projective: per", self.per, I, O)
        I = sketch_spec(I, self.sketch, self.per)
        inverse = SlotSpec((m, m, *scalar_shape(I.shape, self.per)), torch.float32)
        return {**history_slots("O", O, m), **history_slots("I", I, m), "inverse": inverse}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        m = self.order
        I = sketch(I, self.sketch, self.per)
        outputs = shifted_differences(O, self._history(old, "O"), clock)
        inputs = shifted_differences(I, self._history(old, "I"), clock)
        products = inners([(a, b) for a in inputs[1:] for b in inputs[1:]], self.per)
        G = [products[i * m : (i + 1) * m] for i in range(m)]
        trace = torch.stack([G[i][i] for i in range(m)]).sum(0)
        moved = trace > SMALLEST_MOVE
        damping = torch.where(moved, trace * (self.ridge / m), torch.ones_like(trace))
        inverse = positive_definite_inverse([[G[i][j] + damping * (i == j) for j in range(m)] for i in range(m)])
        stacked = torch.stack([torch.stack(row) for row in inverse])
        return {
            **named("O", outputs),
            **named("I", inputs),
            "inverse": torch.where(moved, stacked, torch.zeros_like(stacked)),
        }

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        dI = sketch(I, self.sketch, self.per).float() - state["I"].float()
        b = torch.stack(inners([(dI, past) for past in self._history(state, "I")[1:]], self.per))
        c = (state["inverse"] * b).sum(1).unbind()
        moved = state["inverse"][0, 0] > 0
        return [torch.where(moved, c[0], clock.k / clock.N.clamp(min=1)), *c[1:]]


def check_tokens(where: str, per: Per, I: SlotSpec, O: SlotSpec) -> None:
    """Raises ValueError where a token of the output has none of the input: joint attention reads two streams and gives back each alone."""
    if per == "token" and I.shape[:-1] != O.shape[:-1]:
        raise ValueError(f"{where}='token' needs a token of the input for each of the output, got {I.shape} and {O.shape}; use 'sample'")


SMALLEST_MOVE = 1e-30
"""Squared norm below which past moves count as none: the inverse of a smaller Gram matrix is no float32."""


def positive_definite_inverse(A: list[list[Tensor]]) -> list[list[Tensor]]:
    """Inverse of a small symmetric positive definite matrix of tensors by Gauss-Jordan elimination.

    Unrolled into elementwise operations: no library call, so it compiles, captures and exports everywhere.
    """
    m = len(A)
    rows = [[*A[i], *(torch.full_like(A[i][i], float(i == j)) for j in range(m))] for i in range(m)]
    for p in range(m):
        pivot = rows[p][p]
        rows[p] = [entry / pivot for entry in rows[p]]
        for i in range(m):
            if i != p:
                factor = rows[i][p]
                rows[i] = [entry - factor * lead for entry, lead in zip(rows[i], rows[p], strict=True)]
    return [row[m:] for row in rows]
