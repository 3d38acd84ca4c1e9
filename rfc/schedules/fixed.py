"""Schedules that need no data: Every, Listed, Placed, Phased."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rfc.phase import FULL, PhaseName, phase_named
from rfc.schedules.base import Numbers, Schedule, Unit, checked_count


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

    def can_skip(self, num_steps: int) -> bool:
        return self.interval > 1 and num_steps > self.warmup

    def exercised(self) -> Every:
        return replace(self, interval=2)


class _ForAnyLength(Schedule):
    num_steps: int | None = None  # a plain attribute, which the field of `Placed` can replace


@dataclass(frozen=True, kw_only=True)
class Listed(_ForAnyLength):
    """Exactly the steps in `full_steps` are full, counted from 0; step 0 must be among them, there is nothing to reuse before it."""

    full_steps: Sequence[int]

    TABLE = 4096
    """Longest generation of a list; the table has this length whatever the list, so that another list compiles nothing."""

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not isinstance(self.full_steps, Iterable):
            raise ValueError(f"{where}: full_steps must be a list of integers, got {self.full_steps!r}")
        unsorted = tuple(self.full_steps)
        for step in unsorted:
            checked_count(where, "full_steps: each step", step, 0)
        full_steps = tuple(sorted(set(unsorted)))
        if not full_steps or full_steps[0] != 0:
            raise ValueError(f"{where}: full_steps must contain 0, got {list(unsorted)}; the first step has nothing to reuse")
        if full_steps[-1] >= self.TABLE:
            raise ValueError(f"{where}: full_steps must be below {self.TABLE}, got {full_steps[-1]}")
        object.__setattr__(self, "full_steps", full_steps)

    @property
    def warmup(self) -> int:
        return next((i for i, step in enumerate(self.full_steps) if i != step), len(self.full_steps))

    def numbers(self) -> dict[str, Tensor]:
        table = torch.zeros(self.TABLE + 1)  # the last row stands for all steps beyond
        table[list(self.full_steps)] = 1.0
        return {"table": table}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return _row(numbers["table"], step) > 0

    def can_skip(self, num_steps: int) -> bool:
        return any(step not in set(self.full_steps) for step in range(num_steps))

    def exercised(self) -> Listed:
        return replace(self, full_steps=(0, 2))


@dataclass(frozen=True, kw_only=True)
class Placed(Listed):
    """A list for generations of `num_steps` calls; a transformed model warns (`rfc_fx.StepsMismatchWarning`) where one has another length.

    With the `unit` "interval" neighbouring full steps are 1 apart in the estimator's clock and the steps between them fractions, so that
    a polynomial forecast is one in the variable in which the full steps are equidistant. After the last of them an interval is as long
    as the last one was. With "generation" the whole of it lasts 1. `times`: that clock at each step, in the place of the unit's.
    """

    num_steps: int = field()
    unit: Unit = "step"
    times: Sequence[float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("Placed", "num_steps", self.num_steps, 1)
        if self.full_steps[-1] >= self.num_steps:
            raise ValueError(
                f"Placed: full_steps must be below num_steps={self.num_steps}, got {self.full_steps[-1]}; pass the steps of one generation"
            )
        if self.unit not in get_args(Unit):
            raise ValueError(f"Placed: unit must be {' or '.join(get_args(Unit))}, got {self.unit!r}")
        if self.times is not None:
            times = tuple(self.times) if isinstance(self.times, Iterable) else ()
            is_rising = all(math.isfinite(time) for time in times) and all(a < b for a, b in pairwise(times))
            if len(times) != self.num_steps or not is_rising:
                raise ValueError(f"Placed: times must be {self.num_steps} rising numbers, one for each step, got {self.times!r}")
            object.__setattr__(self, "times", times)

    @property
    def is_placed(self) -> bool:
        return True

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (*super().in_graph, self._clock)

    @property
    def _clock(self) -> Unit:
        """The unit of a list without `times` on the same programs."""
        return self.unit if self.times is None else "interval"

    def exercised(self) -> Placed:
        return _ForWarmUp(full_steps=(0, 2), num_steps=4, unit=self._clock)

    def numbers(self) -> dict[str, Tensor]:
        numbers = super().numbers()
        if self.times is not None:
            numbers["times"] = torch.full((self.TABLE + 1,), self.times[-1])
            numbers["times"][: len(self.times)] = torch.tensor(self.times)
        elif self.unit == "interval":
            full_steps, steps = torch.tensor(self.full_steps), torch.arange(self.TABLE + 1)
            latest = torch.searchsorted(full_steps, steps, right=True) - 1
            lengths = full_steps.diff() if len(full_steps) > 1 else torch.ones(1, dtype=torch.long)
            numbers["times"] = latest + (steps - full_steps[latest]) / lengths[latest.clamp(max=len(lengths) - 1)]
        elif self.unit == "generation":
            numbers["times"] = torch.arange(self.TABLE + 1) / self.num_steps
        return numbers

    @staticmethod
    def time(numbers: Numbers, step: Tensor) -> Float[Tensor, ""]:
        return _row(numbers["times"], step) if "times" in numbers else step


class _ForWarmUp(Placed):
    """A list on the programs of `Placed` whose generations may have any length."""

    @property
    def is_placed(self) -> bool:
        return False

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (Placed, *super().in_graph[1:])


@dataclass(frozen=True, kw_only=True)
class Phased(Schedule):
    """Exactly the phases in `phases`, one for each step from 0 on; a step beyond the list is full. The first must be FULL.

    `branches` are the phases that programs are made for, FULL first: by default those in the list, in their order. Another list of the
    same branches compiles nothing. `period` is what the age of a token is measured in (`rfc.token_selection`), in steps.
    """

    phases: Sequence[PhaseName]
    branches: tuple[PhaseName, ...] = ()
    period: float = 1.0

    def __post_init__(self) -> None:
        if any(isinstance(names, str) or not isinstance(names, Iterable) for names in (self.phases, self.branches)):
            raise ValueError(f"Phased: phases and branches must be lists of phases, got {self.phases!r} and {self.branches!r}")
        phases, branches = tuple(self.phases), tuple(self.branches)
        if not phases or phases[0] != FULL.name:
            raise ValueError(f"Phased: the first step must be FULL, got {phases[:1]}; it has nothing to reuse")
        if len(phases) > Listed.TABLE:
            raise ValueError(f"Phased: at most {Listed.TABLE} steps, got {len(phases)}")
        branches = tuple(dict.fromkeys((FULL.name, *branches))) if branches else tuple(dict.fromkeys(phases))
        for phase in dict.fromkeys((*phases, *branches)):
            if not _can_be_listed(phase):
                raise ValueError(f"Phased: a phase is FULL, ESTIMATE, REUSE or PARTIAL_<number>, got {phase!r}")
            if phase not in branches:
                raise ValueError(f"Phased: {phase} is in phases, but not in branches {', '.join(branches)}")
        if isinstance(self.period, bool) or not isinstance(self.period, int | float) or not 0 < self.period < math.inf:
            raise ValueError(f"Phased: period must be a number of steps above 0, got {self.period!r}")
        object.__setattr__(self, "phases", phases)
        object.__setattr__(self, "branches", branches)

    @property
    def warmup(self) -> int:
        return next((i for i, phase in enumerate(self.phases) if phase != FULL.name), len(self.phases))

    def numbers(self) -> dict[str, Tensor]:
        table = torch.zeros(Listed.TABLE + 1)  # as in `Listed`; zero is the index of FULL
        table[: len(self.phases)] = torch.tensor([float(self.branches.index(phase)) for phase in self.phases])
        return {"table": table, "period": torch.tensor(float(self.period))}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return Phased.phase(numbers, step, k, total) == 0

    @classmethod
    def phase(cls, numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Int[Tensor, ""]:
        return _row(numbers["table"], step).long()

    def can_skip(self, num_steps: int) -> bool:
        return any(phase != FULL.name for phase in self.phases[:num_steps])

    def exercised(self) -> Phased:
        return replace(self, phases=self.branches * 2)


def _row(table: Tensor, step: Tensor) -> Float[Tensor, ""]:
    """The table's entry for a step; its first for all before the first step, its last for all beyond."""
    return table.index_select(0, step.clamp(0, len(table) - 1).long().reshape(1)).reshape(())


def _can_be_listed(name: PhaseName) -> bool:
    """Whether a list can ask for the phase: a step that is verified decides by data about the next."""
    try:
        return not phase_named(name).verifies
    except (TypeError, ValueError):
        return False
