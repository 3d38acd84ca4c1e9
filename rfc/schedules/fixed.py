"""Schedules that need no data: Every, Listed, Placed, Phased."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rfc.schedules.base import Numbers, Phase, Schedule, Unit, checked_count, is_partial


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
    compiles nothing. `period` is what the age of a token is measured in (`rfc.token_selection`), in steps.
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
