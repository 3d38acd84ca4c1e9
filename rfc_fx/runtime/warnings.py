"""Warnings: settings that a generation shows to be wrong, each said once for a model."""

from __future__ import annotations

import warnings

from rfc.bookkeeping import Book, never_skipped
from rfc.schedules.base import Schedule


class NothingSkippedWarning(UserWarning):
    """A generation ran every step in full although its schedule could have skipped some."""


class StepsMismatchWarning(UserWarning):
    """A generation has another number of steps than its full steps were placed for (`rfc.Placed`: `rfc.Chebyshev`, `rfc.MagCache`)."""


class Warned:
    """What a model has warned of, and how it does."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[type[Warning]] = set()

    def at_the_end(self, record: Book, schedule: Schedule) -> None:
        """Say what was wrong with a generation that has ended."""
        if never_skipped(record, schedule):
            self._once(
                NothingSkippedWarning,
                f"all {record.step} steps of a generation were computed in full although {schedule} "
                "could skip; raise its threshold, or check that one generation reaches one context",
            )
        if record.has_moved:  # otherwise it may be the beginning of one whose timestep rises
            self.of_length(schedule, record.step)

    def of_step(self, schedule: Schedule, step: int) -> None:
        """Warn where a generation has come to more steps than its full steps were placed for."""
        self.of_length(schedule, step, " or more")

    def of_length(self, schedule: Schedule, steps: int, more: str = "") -> None:
        """Warn where full steps were placed for generations of another length than `steps` (or `more`)."""
        if schedule.is_placed and steps != schedule.num_steps:
            self._once(
                StepsMismatchWarning,
                f"a generation of {steps}{more} steps, but the full steps were placed for one of {schedule.num_steps}; "
                "pass the number of calls of a generation as `num_steps` of the method",
            )

    def _once(self, category: type[Warning], said: str) -> None:
        if category not in self._said:
            self._said.add(category)
            warnings.warn(f"{self._name}: {said}", category, stacklevel=4)
