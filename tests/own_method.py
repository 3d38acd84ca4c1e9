"""A method whose estimator and schedule are a user's own, as the tests of the command line, calibration and export import it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

import rfc
from rfc.estimators.base import Coefficients
from rfc.schedules.base import Numbers, Signal, Watched
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class Cautious(rfc.Taylor):
    """Taylor's forecast with shorter steps."""

    weight: float = 0.9

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        return [self.weight * c for c in super().coefficients(state, I, clock)]


@dataclass(frozen=True, kw_only=True)
class Drift(rfc.Schedule):
    """Full when the first site's input has moved from the last full step's by more than `limit` of its norm."""

    limit: float
    warmup: int = 2

    @property
    def watches(self) -> tuple[Signal, ...]:
        return ("I",)

    @property
    def accumulates(self) -> bool:
        return False

    @property
    def threshold(self) -> float:
        return self.limit

    def with_threshold(self, threshold: float) -> "Drift":
        return replace(self, limit=threshold)

    def exercised(self) -> "Drift":
        return replace(self, limit=1e9)

    def slots(self, watched: dict[str, SlotSpec]) -> dict[str, SlotSpec]:  # type: ignore[override]
        return {"I": watched["I"]}

    def refresh(self, old: State, watched: Watched, clock: Clock) -> dict[str, Tensor]:
        return {"I": watched["I"]}

    def error(self, watched: Watched, state: State, clock: Clock) -> Tensor:
        return (watched["I"] - state["I"]).float().norm() / state["I"].float().norm()

    def numbers(self) -> dict[str, Tensor]:
        return {"limit": torch.tensor(float(self.limit)), "warmup": torch.tensor(float(self.warmup))}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return (step < numbers["warmup"]) | ~(total <= numbers["limit"])

    def can_skip(self, num_steps: int) -> bool:
        return num_steps > self.warmup


method = rfc.Method(estimator=Cautious(order=1), schedule=Drift(limit=0.3), name="Drift")
