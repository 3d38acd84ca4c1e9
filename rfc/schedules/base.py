"""Which step is full: a fixed rule, a list, or the data.

A schedule is a rule on 0-d tensors, so that the host and a compiled graph take the same decision from the same lines.
Its thresholds are numbers handed in (`numbers`), never constants of a graph: another threshold compiles nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rfc.state import Clock, SlotSpec, State

Numbers = Mapping[str, Tensor]


Watched = Mapping[str, Tensor]


Signal = Literal["I", "base"]
"""What a schedule can watch at the first site: its input I, or the stream that its residual is added to."""


Unit = Literal["step", "interval"]
"""What a forecast counts time in: steps, or intervals between neighbouring full steps, whatever their length."""


Phase = str
"""What a step does.

FULL computes; ESTIMATE forecasts every site; VERIFY does so too, and computes a part to see how good that was; PARTIAL_1, PARTIAL_2, ...
compute some tokens of the feed-forwards (`rfc.token_selection`), each its own share of them; REUSE takes the stream that left the last
block in the latest step that was not REUSE itself.
"""


def is_partial(phase: Phase) -> bool:
    """Whether the phase computes some tokens."""
    return phase.startswith("PARTIAL_")


class Schedule(ABC):
    """Decides for each step of a generation whether it is computed in full."""

    @property
    @abstractmethod
    def warmup(self) -> int:
        """Number of leading steps that are always full (at least 1)."""

    @property
    def watches(self) -> tuple[Signal, ...]:
        """What of the first site the rule looks at before every decision; nothing when it needs no data."""
        return ()

    @property
    def remembers(self) -> Literal["full steps", "all steps"]:
        """After which steps `refresh` takes in what is watched."""
        return "full steps"

    @property
    def accumulates(self) -> bool:
        """Whether the errors since the last full step add up; otherwise the latest alone counts."""
        return True

    @property
    def is_lagged(self) -> bool:
        """Whether a step's own error counts from the step after it on, so that no step waits for its own data."""
        return False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that the rule chooses from; FULL is the first."""
        return ("FULL", "ESTIMATE")

    @property
    def unit(self) -> Unit:
        """What the clock of the estimator counts in."""
        return "step"

    @property
    def in_graph(self) -> tuple[Any, ...]:
        """What of the rule the programs are made from; all else may change between steps."""
        return (type(self), self.watches, self.remembers, self.accumulates, self.is_lagged, self.phases)

    def slots(self, watched: Mapping[str, SlotSpec]) -> dict[str, SlotSpec]:
        """Return what the rule keeps of the watched tensors."""
        return {}

    def refresh(self, old: State, watched: Watched, clock: Clock) -> dict[str, Tensor]:
        """Return what is kept after a step (`remembers`)."""
        return {}

    def error(self, watched: Watched, state: State, clock: Clock) -> Tensor:
        """Return this step's error, a 0-d float32 tensor."""
        raise NotImplementedError(f"{type(self).__name__} watches nothing")

    @abstractmethod
    def numbers(self) -> dict[str, Tensor]:
        """Return the rule's thresholds as float32 tensors of fixed shape."""

    @staticmethod
    @abstractmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        """Return whether step number `step`, k steps after the last full one, is full; `total` is the error that counts."""

    @classmethod
    def phase(cls, numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Int[Tensor, ""]:
        """Return the place of the step's phase in `phases`."""
        return torch.where(cls.full(numbers, step, k, total), 0, 1)

    @staticmethod
    def time(numbers: Numbers, step: Tensor) -> Float[Tensor, ""]:
        """Return the time of step number `step` in the rule's `unit`."""
        return step

    @abstractmethod
    def can_skip(self, steps: int) -> bool:
        """Whether a generation of `steps` steps could contain a skipped one."""


def clock_at(schedule: Schedule, numbers: Numbers, step: Tensor, k: Tensor, gap: Tensor, anchors: Tensor) -> Clock:
    """The clock of a step in the rule's unit; `k` and `gap` count steps: since the last full one, and from the one before to that."""
    if schedule.unit == "step":
        return Clock(k, gap, anchors)
    now, last, before = (schedule.time(numbers, at) for at in (step, step - k, step - k - gap))
    return Clock(now - last, last - before, anchors)


def checked_count(where: str, name: str, value: int | None, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{where}: {name} must be an integer of at least {low}, got {value!r}")
