"""What methods share whose full steps are fixed before a generation begins."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Self

from rfc.estimators.base import Estimator
from rfc.estimators.newton import Newton
from rfc.published import Checked
from rfc.schedules.base import checked_count
from rfc.schedules.fixed import Placed

SHARE = 0.28
"""Of a generation's steps that are full unless something else is said: 14 of 50."""


class PlacedMethod(Checked):
    """`nfc` full steps of `steps` at `places`, and Newton's polynomial through them, damped, for a forecast. Not in the papers.

    The polynomial is one in the time in which full steps are equidistant (`rfc.Placed.unit`): counted in steps, the change over a short
    gap would be carried on over the longer gap after it. Some models want a line, others the polynomial of order 2; `damping` takes the
    mean (`rfc.Newton`). A skipped step needs no site's input and no decision.
    """

    nfc: int | None
    order: int
    damping: float

    @property
    @abstractmethod
    def steps(self) -> int:
        """Calls of a generation (a sampler of second order calls twice a step, all but once)."""

    @abstractmethod
    def places(self, nfc: int) -> tuple[int, ...]:
        """The full steps, were they so many; raises ValueError for a number that cannot be."""

    def with_nfc(self, nfc: int | None) -> Self:
        """The same with so many full steps; ValueError for a number that cannot be."""
        return replace(self, nfc=nfc)  # type: ignore[type-var]

    @property
    def full(self) -> int:
        """How many steps are full."""
        return max(min(2, self.steps), round(SHARE * self.steps)) if self.nfc is None else self.nfc

    @property
    def estimator(self) -> Estimator:
        return Newton(order=self.order, damping=self.damping)

    @cached_property  # asked for several times a step
    def schedule(self) -> Placed:
        return Placed(steps=self.places(self.full), of=self.steps, unit="interval")


def check_nfc(where: str, nfc: int, steps: int) -> None:
    """Raise ValueError for a number of full steps that a generation of `steps` cannot have."""
    checked_count(where, "nfc", nfc, 1)
    if nfc > steps:
        raise ValueError(f"{where}: nfc must be at most steps ({steps}), got {nfc}")
