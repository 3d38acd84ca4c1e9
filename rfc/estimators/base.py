"""How the output of a site is forecast from what it remembers: always O + sum_i c_i dO_i.

An estimator says which slots a site keeps (`slots`), how a full step refreshes them (`refresh`) and the coefficients of
a skipped step (`coefficients`); `combine` applies them. All are pure functions of tensors, so that the eager twin runs
them as they stand and the compiler traces them into its graphs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.state import Clock, SlotSpec, State

Coefficients = list[Tensor]


def combine(O: Float[Tensor, "*S"], terms: list[Float[Tensor, "*S"]], c: Coefficients) -> Float[Tensor, "*S"]:
    """O + sum_i c_i dO_i, accumulated in float32 or better, returned in O's dtype; the same tensor O when there is no term."""
    if not terms:
        return O
    wide = torch.promote_types(O.dtype, torch.float32)
    total = O.to(wide)
    for coefficient, term in zip(c, terms, strict=True):
        total = total + coefficient * term.to(wide)
    return total.to(O.dtype)


class Estimator(ABC):
    """A forecaster of one site's output; frozen, checked when made, without state of its own."""

    @property
    @abstractmethod
    def orders(self) -> int:
        """Number of difference terms m."""

    @property
    def needs_input(self) -> bool:
        """Whether a skipped step needs the site's input I."""
        return False

    @property
    def reads_all_inputs(self) -> bool:
        """Whether a skipped step needs the whole input of every site, so that one site's estimate waits for the one before."""
        return self.needs_input

    @abstractmethod
    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        """Return the slots of a site whose input and output look like I and O."""

    @abstractmethod
    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        """Return the state after a full step; `clock.k` is the gap to the full step before, `clock.n` the anchors before it."""

    @abstractmethod
    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        """Return c_1 .. c_m for a step `clock.k` after the last full one; float32, broadcastable over O."""

    def estimate(self, state: State, I: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        """O_hat(t-k) = O(t) + sum_i c_i dO_i(t), in O's dtype."""
        terms = [state[f"dO{i}"] for i in range(1, self.orders + 1)]
        return combine(state["O"], terms, self.coefficients(state, I, clock))

    @property
    def num_weights(self) -> int:
        """Numbers that it needs of the schedule for each step (`Clock.weights`)."""
        return 0

    @property
    def corrects(self) -> bool:
        """Whether a full step hands on its output with a correction."""
        return False

    def uncorrected(self) -> Estimator:
        """The same forecast, where a full step hands on its output as it is; ValueError if it is nothing without its corrections."""
        if self.corrects:
            raise ValueError(f"{type(self).__name__} is nothing without its corrections")
        return self

    def correction(self, old: State, I: Float[Tensor, "N *S D"], O: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        """What a full step adds to its output O before it hands it on; `old` is the state before it."""
        return torch.zeros_like(O)

    def _history(self, state: State, X: str) -> list[Tensor]:
        return [state[X], *(state[f"d{X}{i}"] for i in range(1, self.orders + 1))]


def named(X: str, values: list[Tensor]) -> dict[str, Tensor]:
    return {X: values[0], **{f"d{X}{i}": value for i, value in enumerate(values[1:], start=1)}}


def history_slots(X: str, spec: SlotSpec, orders: int) -> dict[str, SlotSpec]:
    return {X: spec, **{f"d{X}{i}": spec for i in range(1, orders + 1)}}


MOST_ORDER = 16
"""Of a forecast, where its formula has no bound of its own: a site holds one tensor for each order."""


def check_order(where: str, order: int, low: int, high: int | None = None) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order < low or (high is not None and order > high):
        bounds = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"
        raise ValueError(f"{where}: order must be {bounds}, got {order!r}")
    if order > MOST_ORDER:
        raise ValueError(
            f"{where}: order must be an integer from {low} to {MOST_ORDER}, got {order if order < 1 << 64 else 'a larger one'}"
        )


class Remembered(Estimator):
    """Keeps the output of the last full step and nothing else."""

    @property
    def orders(self) -> int:
        return 0

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return {"O": O}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        return {"O": O}
