"""RCS: relational cache scheduling (RFC, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rfc.estimators.base import MOST_ORDER
from rfc.estimators.taylor import Taylor
from rfc.ranks import summed
from rfc.schedules.base import Numbers, Schedule, Signal, Watched, checked_count, checked_threshold
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class RCS(Schedule):
    """Relational cache scheduling: full when the first site's input has drifted from its forecast (RFC, Eq. 13).

    eps(t-j) = ||I(t-j) - I_T(t-j)||_1 / ||I(t-j)||_1 with I_T the Taylor forecast of order m; full when sum_{j=1..k} eps > tau.
    Decided before any block runs. One decision per batch, from the mean (or the max) over samples. `max_skip` caps the
    number of steps skipped in a row. An eps that is not a number makes the step full.
    `lagged` (not in the paper): a step is decided by the errors up to the step before, so that a device never waits for the host.
    """

    tau: float
    warmup: int = 3
    max_skip: int | None = None
    order: int = 1
    over: Literal["mean", "max"] = "mean"
    lagged: bool = False

    def __post_init__(self) -> None:
        checked_threshold("RCS", "tau", self.tau)
        checked_count("RCS", "warmup", self.warmup, 1)
        if self.max_skip is not None:
            checked_count("RCS", "max_skip", self.max_skip, 0)
        checked_count("RCS", "order", self.order, 1, MOST_ORDER)
        if self.over not in ("mean", "max"):
            raise ValueError(f"RCS: over must be mean or max, got {self.over!r}")

    @property
    def forecaster(self) -> Taylor:
        """The forecaster of the watched input."""
        return Taylor(order=self.order)

    @property
    def watches(self) -> tuple[Signal, ...]:
        return ("I",)

    @property
    def is_lagged(self) -> bool:
        return self.lagged

    @property
    def joins(self) -> Literal["mean", "max"]:
        return self.over

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (*super().in_graph, self.order, self.over)

    def slots(self, watched: Mapping[str, SlotSpec]) -> dict[str, SlotSpec]:
        return self.forecaster.slots(watched["I"], watched["I"])

    def refresh(self, old: State, watched: Watched, clock: Clock) -> dict[str, Tensor]:
        return self.forecaster.refresh(old, watched["I"], watched["I"], clock)

    def error(self, watched: Watched, state: State, clock: Clock) -> Float[Tensor, ""]:
        """eps: relative L1 error of the forecast of I, per sample in float32, then reduced over the batch."""
        I = watched["I"]
        past = {name: tensor.float() for name, tensor in state.items()}  # the forecast is not rounded to the model's dtype
        forecast = self.forecaster.estimate(past, I, clock)
        axes = list(range(1, I.dim()))
        off, length = summed((I.float() - forecast).abs().sum(axes), I.float().abs().sum(axes))
        eps = off / length
        return eps.mean() if self.over == "mean" else eps.max()

    def numbers(self) -> dict[str, Tensor]:
        most = math.inf if self.max_skip is None else float(self.max_skip)
        return {
            "tau": torch.tensor(float(self.tau)),
            "warmup": torch.tensor(float(self.warmup)),
            "max_skip": torch.tensor(most),
        }

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return (step < numbers["warmup"]) | ~(total <= numbers["tau"]) | (k > numbers["max_skip"])

    @property
    def threshold(self) -> float:
        return self.tau

    def with_threshold(self, threshold: float) -> RCS:
        return replace(self, tau=threshold)

    def exercised(self) -> RCS:
        return replace(self, tau=math.inf, max_skip=1)

    def can_skip(self, num_steps: int) -> bool:
        return num_steps > self.warmup and self.tau > 0 and self.max_skip != 0
