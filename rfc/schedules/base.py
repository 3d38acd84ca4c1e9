"""Which step is full: a fixed rule, a list, or the data.

A schedule is a rule on 0-d tensors, so that the host and a compiled graph take the same decision from the same lines.
Its thresholds are numbers handed in (`numbers`), never constants of a graph: another threshold compiles nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rfc.phase import ESTIMATE, FULL, PhaseName
from rfc.state import Clock, SlotSpec, State

MOST_COUNT = (1 << 31) - 1
"""The largest number of steps, tokens or parts that a setting may name."""

Numbers = Mapping[str, Tensor]

Watched = Mapping[str, Tensor]

Signal = Literal["I", "base", "timestep"]
"""Signals of the first site: its input I, or the stream that its residual is added to; and the timestep that the model is called with."""

Unit = Literal["step", "interval", "generation"]
"""Units of time of a forecast: steps, intervals between neighbouring full steps, whatever their length, or the whole generation."""


class Schedule(ABC):
    """Decides for each step of a generation whether it is computed in full.

    A schedule of one's own subclasses this one: a frozen dataclass with `warmup`, `numbers`, `full` and `can_skip`. Where it has a
    threshold, `threshold` and `with_threshold` let it be calibrated; `exercised` is for warm-ups and for the check at export.
    """

    @property
    @abstractmethod
    def warmup(self) -> int:
        """Number of leading steps that are always full (at least 1)."""

    @property
    def watches(self) -> tuple[Signal, ...]:
        """Signals of the first site that the rule reads before every decision; empty where it needs no data."""
        return ()

    @property
    def remembers(self) -> Literal["full steps", "all steps"]:
        """Steps after which `refresh` takes in the signals."""
        return "full steps"

    @property
    def reads_output(self) -> bool:
        """Whether `refresh` takes in `watched["output"]` after full steps: the stream behind the first site.

        After a skipped step there is none; of the state, that step renews what `watches` names and nothing else.
        """
        return False

    @property
    def accumulates(self) -> bool:
        """Whether the errors since the last full step add up; otherwise the latest alone counts."""
        return True

    @property
    def is_lagged(self) -> bool:
        """Whether a step's own error counts from the step after it on, so that no step waits for its own data."""
        return False

    @property
    def joins(self) -> Literal["mean", "max"]:
        """How errors of several batches make one, where ranks with a batch each decide together."""
        return "mean"

    @property
    def branches(self) -> tuple[PhaseName, ...]:
        """The phases that the rule chooses from; FULL is the first."""
        return (FULL.name, ESTIMATE.name)

    @property
    def threshold(self) -> float | None:
        """Bound of the error, above which a step is full; None: the rule has no such number."""
        return None

    @property
    def num_steps(self) -> int | None:
        """Calls of a generation that the rule is made for; None: any number."""
        return None

    @property
    def is_placed(self) -> bool:
        """Whether the full steps are chosen before a generation begins, for one of `num_steps` calls."""
        return False

    @property
    def is_bound(self) -> bool:
        """Whether the rule can decide without `bound`, which tells it the noise levels of a generation."""
        return True

    @property
    def nfc(self) -> int | None:
        """Full steps of a generation, where the rule places that many; None: it does not count them."""
        return None

    def with_threshold(self, threshold: float) -> Schedule:
        """Return the rule with another threshold; ValueError for a rule without one."""
        raise ValueError(f"{type(self).__name__} decides without a threshold")

    def with_nfc(self, nfc: int | float | None) -> Schedule:
        """Return the rule with that many full steps (None: its default); ValueError for a rule that places none."""
        raise ValueError(f"{type(self).__name__} does not place a number of full steps")

    def bound(self, num_steps: int, levels: NoiseLevels | None = None) -> Schedule:
        """Return the rule for a generation of so many calls at these noise levels, as it is known when the generation begins.

        A rule that needs neither is returned as it is. ValueError where a rule needs noise levels that are not known.
        """
        return self

    def for_pass(self, name: str) -> Schedule:
        """Return the rule for the calls of one context ("cond", "uncond", ...): another one where passes of guidance have their own."""
        return self

    def exercised(self) -> Schedule:
        """Return the rule with settings that reach every branch, and a full step between two others, soon after the warm-up.

        For warm-ups and checks. It runs on the same programs (`in_graph`), whatever the data.
        """
        return self

    @property
    def unit(self) -> Unit:
        """Unit of the estimator's clock."""
        return "step"

    @property
    def num_weights(self) -> int:
        """Numbers that the rule hands to the estimator for each step beside its time (`Clock.weights`)."""
        return 0

    @property
    def in_graph(self) -> tuple[Any, ...]:
        """Parts of the rule that the programs are made from; all else may change between steps."""
        return (type(self), self.watches, self.remembers, self.reads_output, self.accumulates, self.is_lagged, self.branches)

    def slots(self, watched: Mapping[str, SlotSpec]) -> dict[str, SlotSpec]:
        """Return the state that the rule keeps of the signals."""
        return {}

    def refresh(self, old: State, watched: Watched, clock: Clock) -> dict[str, Tensor]:
        """Return the state after a step (`remembers`)."""
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
        """Return the index of the step's phase in `branches`."""
        return torch.where(cls.full(numbers, step, k, total), 0, 1)

    @staticmethod
    def time(numbers: Numbers, step: Tensor) -> Float[Tensor, ""]:
        """Return the time of step number `step` in the rule's `unit`."""
        return step

    @staticmethod
    def weights_at(numbers: Numbers, step: Tensor, k: Tensor) -> Float[Tensor, " W"] | None:
        """Return the `num_weights` numbers of step number `step`, k steps after the last full one; None for a rule that has none."""
        return None

    @abstractmethod
    def can_skip(self, num_steps: int) -> bool:
        """Whether a generation of `num_steps` steps could contain a skipped one."""


def clock_at(schedule: Schedule, numbers: Numbers, step: Tensor, k: Tensor, gap: Tensor, anchors: Tensor) -> Clock:
    """The clock of a step in the rule's unit; `k` and `gap` count steps: since the last full one, and from the one before to that."""
    weights = schedule.weights_at(numbers, step, k)
    if schedule.unit == "step":
        return Clock(k, gap, anchors, weights)
    now, last, before = (schedule.time(numbers, at) for at in (step, step - k, step - k - gap))
    return Clock(now - last, last - before, anchors, weights)


class NoiseLevels(NamedTuple):
    """lambda = log(alpha / sigma), half the log-SNR (DPM-Solver, arXiv 2206.00927), where a sample is alpha * picture + sigma * noise."""

    lambdas: tuple[float, ...]
    """At each call of the model, in their order."""
    end: float | None
    """After the last step; None: there is no noise left."""
    is_flow: bool = False
    """Whether alpha = 1 - sigma, as in flow matching; otherwise the sampler turns the sample, alpha^2 + sigma^2 = 1."""


def checked_threshold(where: str, name: str, value: float, more: str = " (inf: never full after warm-up)") -> None:
    """Raise ValueError for a threshold that no error can be compared with."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value < 0:
        raise ValueError(f"{where}: {name} must be a number >= 0{more}, got {value!r}")
    if isinstance(value, int) and value > MOST_COUNT:
        raise ValueError(f"{where}: {name} must be a number >= 0, integers at most {MOST_COUNT}, got one of {value.bit_length()} bits")


def checked_count(where: str, name: str, value: int | None, low: int, high: int = MOST_COUNT) -> None:
    """Raise ValueError for anything but an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{where}: {name} must be an integer of at least {low}, got {value!r}")
    if value > high:
        shown = value if value < 1 << 64 else f"one of {value.bit_length()} bits"
        raise ValueError(f"{where}: {name} must be an integer from {low} to {high}, got {shown}")
