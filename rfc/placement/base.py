"""Full steps that are computed from settings before a generation begins."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from jaxtyping import Bool, Float
from torch import Tensor

from rfc.estimators.newton import Newton
from rfc.method import Method
from rfc.schedules.base import Numbers, Schedule, Unit, checked_count
from rfc.schedules.fixed import Listed, Placed

MOST_STEPS = Listed.TABLE
"""Of a generation whose full steps are placed: they are looked up in a table."""

SHARE = 0.28
"""Of a generation's steps that are full unless something else is said: 14 of 50."""


class PlacedBySettings(Schedule):
    """A list of full steps that a rule derives from its settings; its programs are those of `rfc.Placed`.

    `unit` as in `rfc.Placed`. Subclasses are frozen dataclasses with `num_steps` and `place`.
    """

    num_steps: int | None = None  # a plain attribute, which the fields of the subclasses can replace
    unit: Unit = "step"

    def __post_init__(self) -> None:
        _ = self.placed  # raises what is wrong with the settings

    @abstractmethod
    def place(self) -> tuple[int, ...]:
        """The full steps; ValueError for settings that give none."""

    @property
    def length(self) -> int:
        """Calls of a generation."""
        assert self.num_steps is not None
        return self.num_steps

    @cached_property  # asked for several times a step
    def placed(self) -> Placed:
        """The list as a schedule."""
        return Placed(full_steps=self.place(), num_steps=self.length, unit=self.unit)

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The steps that are computed, counted from 0."""
        return tuple(self.placed.full_steps)

    @property
    def warmup(self) -> int:
        return self.placed.warmup

    @property
    def is_placed(self) -> bool:
        return True

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return self.placed.in_graph

    def numbers(self) -> dict[str, Tensor]:
        return self.placed.numbers()

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return Placed.full(numbers, step, k, total)

    @staticmethod
    def time(numbers: Numbers, step: Tensor) -> Float[Tensor, ""]:
        return Placed.time(numbers, step)

    def can_skip(self, num_steps: int) -> bool:
        return self.placed.can_skip(num_steps)

    def exercised(self) -> Placed:
        return self.placed.exercised()


class PlacedByCount(PlacedBySettings):
    """`count` full steps of `num_steps`, or that share of them below 1: None takes 28 %, as many as 14 of 50."""

    count: int | float | None = None
    unit: Unit = "interval"

    @property
    def nfc(self) -> int:
        share = SHARE if self.count is None else self.count
        return max(min(2, self.length), round(share * self.length)) if isinstance(share, float) else share

    def with_nfc(self, nfc: int | float | None) -> Self:
        return replace(self, count=nfc)  # type: ignore[type-var]


def forecast_at(schedule: PlacedByCount, name: str, order: int, damping: float, default_granularity: str | None = None) -> Method:
    """The schedule with Newton's polynomial through its full steps, damped. Not in the papers.

    The polynomial is one in the time in which full steps are equidistant (`rfc.Placed.unit`): counted in steps, the change over a short
    gap would be carried on over the longer gap after it. Some models want a line, others the polynomial of order 2; `damping` takes the
    mean (`rfc.Newton`). A skipped step needs no site's input and no decision.
    """
    estimator = Newton(order=order, damping=damping)
    return Method(estimator=estimator, schedule=schedule, default_granularity=default_granularity, name=name)


def at_most(count: int | float | None, num_steps: int) -> int | float | None:
    """The number of full steps for a generation that may have fewer."""
    return min(count, num_steps) if isinstance(count, int) else count


def check_count(where: str, count: Any, name: str = "nfc") -> None:
    """Raise ValueError for what is neither None, nor a number of full steps, nor a share of the steps."""
    if isinstance(count, float) and not 0 < count < 1:
        raise ValueError(f"{where}: {name} must be a number of full steps, or a share of the steps above 0 and below 1, got {count!r}")
    if count is not None and not isinstance(count, float):
        checked_count(where, name, count, 1)


def check_nfc(where: str, nfc: int, num_steps: int, name: str = "nfc") -> None:
    """Raise ValueError for a number of full steps that a generation of `num_steps` cannot have."""
    checked_count(where, name, nfc, 1)
    if nfc > num_steps:
        raise ValueError(f"{where}: {name} must be at most num_steps ({num_steps}), got {nfc}")
