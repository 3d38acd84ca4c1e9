"""Which step is full: a fixed rule, a list, or the data.

A schedule is a rule on 0-d tensors, so that the host and a compiled graph take the same decision from the same lines.
Its thresholds are numbers handed in (`numbers`), never constants of a graph: another threshold compiles nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rfc.estimate import Taylor
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
compute some tokens of the feed-forwards (`rfc.tokens`), each its own share of them; REUSE takes the stream that left the last
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


@dataclass(frozen=True, kw_only=True)
class Every(Schedule):
    """The first `warmup` steps are full, then every `interval`-th.

    With warmup=2 and 50 steps: 14, 11, 10 and 8 full steps for interval 4, 5, 6 and 7, the numbers published for FORA and
    TaylorSeer on DiT; with warmup=3 those for FLUX.
    """

    interval: int
    warmup: int = 2

    def __post_init__(self) -> None:
        checked_count("Every", "interval", self.interval, 1)
        checked_count("Every", "warmup", self.warmup, 1)

    def numbers(self) -> dict[str, Tensor]:
        return {"interval": torch.tensor(float(self.interval)), "warmup": torch.tensor(float(self.warmup))}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return (step < numbers["warmup"]) | (k >= numbers["interval"])

    def can_skip(self, steps: int) -> bool:
        return self.interval > 1 and steps > self.warmup


@dataclass(frozen=True, kw_only=True)
class Listed(Schedule):
    """Exactly the steps in `steps` are full, counted from 0; step 0 must be among them, there is nothing to reuse before it."""

    steps: Sequence[int]

    TABLE = 4096
    """Steps a list can speak of; the table has this length whatever the list, so that another list compiles nothing."""

    def __post_init__(self) -> None:
        if not isinstance(self.steps, Iterable):
            raise ValueError(f"Listed: steps must be a list of integers, got {self.steps!r}")
        given = tuple(self.steps)
        for step in given:
            checked_count("Listed", "steps: each step", step, 0)
        chosen = tuple(sorted(set(given)))
        if not chosen or chosen[0] != 0:
            raise ValueError(f"Listed: steps must contain 0, got {list(given)}; the first step has nothing to reuse")
        if chosen[-1] >= self.TABLE:
            raise ValueError(f"Listed: steps must be below {self.TABLE}, got {chosen[-1]}")
        object.__setattr__(self, "steps", chosen)

    @property
    def warmup(self) -> int:
        return next((i for i, step in enumerate(self.steps) if i != step), len(self.steps))

    def numbers(self) -> dict[str, Tensor]:
        table = torch.zeros(self.TABLE + 1)  # the last row stands for all steps beyond
        table[list(self.steps)] = 1.0
        return {"table": table}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return _row(numbers["table"], step) > 0

    def can_skip(self, steps: int) -> bool:
        return any(step not in set(self.steps) for step in range(steps))


@dataclass(frozen=True, kw_only=True)
class Placed(Listed):
    """A list for generations of `of` steps; a transformed model warns (`rfc_fx.StepsMismatchWarning`) where one has another length.

    With the `unit` "interval" neighbouring full steps are 1 apart in the estimator's clock and the steps between them fractions, so that
    a polynomial forecast is one in the variable in which the full steps are equidistant. After the last of them an interval is as long
    as the last one was.
    """

    of: int
    unit: Unit = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("Placed", "of", self.of, 1)
        if self.steps[-1] >= self.of:
            raise ValueError(f"Placed: steps must be below of={self.of}, got {self.steps[-1]}")
        if self.unit not in get_args(Unit):
            raise ValueError(f"Placed: unit must be {' or '.join(get_args(Unit))}, got {self.unit!r}")

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (*super().in_graph, self.unit)

    def numbers(self) -> dict[str, Tensor]:
        numbers = super().numbers()
        if self.unit == "interval":
            full = torch.tensor(self.steps)
            at = torch.arange(self.TABLE + 1)
            place = torch.searchsorted(full, at, right=True) - 1  # of the latest full step
            lengths = full.diff() if len(full) > 1 else torch.ones(1, dtype=torch.long)
            numbers["times"] = place + (at - full[place]) / lengths[place.clamp(max=len(lengths) - 1)]
        return numbers

    @staticmethod
    def time(numbers: Numbers, step: Tensor) -> Float[Tensor, ""]:
        return _row(numbers["times"], step) if "times" in numbers else step


@dataclass(frozen=True, kw_only=True)
class Phased(Schedule):
    """Exactly the phases in `steps`, one for each step from 0 on; a step beyond the list is full. The first must be FULL.

    `phases` are those that programs are made for, FULL first: by default those in the list, in their order. Another list of the same phases
    compiles nothing. `period` is what the age of a token is measured in (`rfc.tokens`), in steps.
    """

    steps: Sequence[Phase]
    phases: tuple[Phase, ...] = ()
    period: float = 1.0

    KNOWN = ("FULL", "ESTIMATE", "REUSE")

    def __post_init__(self) -> None:
        given = (self.steps, self.phases)
        if any(isinstance(one, str) or not isinstance(one, Iterable) for one in given):
            raise ValueError(f"Phased: steps and phases must be lists of phases, got {self.steps!r} and {self.phases!r}")
        steps, phases = (tuple(one) for one in given)
        if not steps or steps[0] != "FULL":
            raise ValueError(f"Phased: the first step must be FULL, got {steps[:1]}; it has nothing to reuse")
        if len(steps) > Listed.TABLE:
            raise ValueError(f"Phased: at most {Listed.TABLE} steps, got {len(steps)}")
        phases = tuple(dict.fromkeys(("FULL", *phases))) if phases else tuple(dict.fromkeys(steps))
        for phase in dict.fromkeys((*steps, *phases)):
            if phase not in self.KNOWN and not (isinstance(phase, str) and is_partial(phase)):
                raise ValueError(f"Phased: a phase is {', '.join(self.KNOWN)} or PARTIAL_<number>, got {phase!r}")
            if phase not in phases:
                raise ValueError(f"Phased: {phase} is in steps, but not in phases {', '.join(phases)}")
        if isinstance(self.period, bool) or not isinstance(self.period, int | float) or not 0 < self.period < math.inf:
            raise ValueError(f"Phased: period must be a number of steps above 0, got {self.period!r}")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "phases", phases)

    @property
    def warmup(self) -> int:
        return next((i for i, phase in enumerate(self.steps) if phase != "FULL"), len(self.steps))

    def numbers(self) -> dict[str, Tensor]:
        table = torch.zeros(Listed.TABLE + 1)  # as in `Listed`; zero is the place of FULL
        table[: len(self.steps)] = torch.tensor([float(self.phases.index(phase)) for phase in self.steps])
        return {"table": table, "period": torch.tensor(float(self.period))}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return Phased.phase(numbers, step, k, total) == 0

    @classmethod
    def phase(cls, numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Int[Tensor, ""]:
        return _row(numbers["table"], step).long()

    def can_skip(self, steps: int) -> bool:
        return any(phase != "FULL" for phase in self.steps[:steps])


def _row(table: Tensor, step: Tensor) -> Float[Tensor, ""]:
    """The table's entry for a step; its first for all before the first step, its last for all beyond."""
    return table.index_select(0, step.clamp(0, len(table) - 1).long().reshape(1)).reshape(())


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
        if isinstance(self.tau, bool) or not isinstance(self.tau, int | float) or math.isnan(self.tau) or self.tau < 0:
            raise ValueError(f"RCS: tau must be a number >= 0 (inf: never full after warm-up), got {self.tau!r}")
        checked_count("RCS", "warmup", self.warmup, 1)
        if self.max_skip is not None:
            checked_count("RCS", "max_skip", self.max_skip, 0)
        checked_count("RCS", "order", self.order, 1)
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
        eps = (I.float() - forecast).abs().sum(axes) / I.float().abs().sum(axes)
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

    def can_skip(self, steps: int) -> bool:
        return steps > self.warmup and self.tau > 0 and self.max_skip != 0
