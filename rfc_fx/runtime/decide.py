"""The decision of a step, as a pure function of what is known: which phase it runs, or why it begins anew."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from rfc.bookkeeping import Book, ClockValues, Rule, arrive, clock_values, count
from rfc.phase import PhaseName
from rfc_fx.errors import RFCError


class Reason(StrEnum):
    """Why a step begins anew."""

    OTHER_ORDER = "timesteps came in another order than prepared"
    MODEL_CHANGED = "the model changed since it was captured"
    HOISTED_BEFORE = "hoisted values were those of the generation before"
    OTHER_CLOCK = "the generation was longer than known when its error was measured"


@dataclass(frozen=True)
class Restart:
    """The step begins anew, with the same call."""

    reason: Reason


class Facts(NamedTuple):
    """What is known of a step when it enters, and when it is decided; plain values."""

    timestep: float | None = None
    """The largest of the batch, None where no host has seen it."""
    sign: int = 1
    """Which way the timestep goes, as far as known (`rfc.bookkeeping.arrive`)."""
    model_changed: bool = False
    """Whether the model is no longer what its programs were made from; looked at where a generation begins."""
    eps: float | None = None
    """The schedule's error, measured by PREFIX."""
    clock: ClockValues | None = None
    """The clock that PREFIX ran with, where it read the state."""
    as_prepared: bool = True
    """Whether the timestep is the one whose hoisted values the step has used."""
    hoists: bool = False
    """Whether INVARIANT or TIMESTEP ran, or their results were used."""
    awaits_data: bool = False
    """Whether PREFIX still has to run for the decision."""


class Decision(NamedTuple):
    """What comes of the facts so far."""

    book: Book
    verdict: PhaseName | Restart | None
    """None where the decision awaits data."""
    sign: int
    begins: bool
    """Whether a new generation began, whose book this is."""


def decide(book: Book, rule: Rule, facts: Facts) -> Decision:
    """Decide a step by the rule of a schedule: the phase it runs, counted in the book, or why it begins anew.

    A step is decided when its call comes; where the schedule needs data of the step, it then awaits them and is decided a second time.

    | what is seen, first match | verdict | book |
    |---|---|---|
    | the timestep is not the prepared one | Restart(OTHER_ORDER) | as it was |
    | it moves back, the model changed | Restart(MODEL_CHANGED) | the next generation's |
    | it moves back, values are hoisted | Restart(HOISTED_BEFORE) | the next generation's |
    | it moves back in two generations of one timestep each, and so the clock is another | Restart(OTHER_CLOCK) | both joined |
    | the decision awaits data | None | the next generation's where the timestep moves back, else as it was or joined |
    | the timestep moves back | FULL, as every first step | the next generation's, counted |
    | otherwise | the schedule's phase | counted |

    In one step no reason but MODEL_CHANGED can come twice.
    """
    if not facts.as_prepared:
        return Decision(book, Restart(Reason.OTHER_ORDER), facts.sign, False)
    book, sign, begins = arrive(book, rule.schedule, facts.timestep, facts.sign)
    if begins and facts.model_changed:
        return Decision(book, Restart(Reason.MODEL_CHANGED), sign, begins)
    if begins and facts.hoists:
        return Decision(book, Restart(Reason.HOISTED_BEFORE), sign, begins)
    if facts.clock is not None and not begins and clock_values(book, rule.schedule) != facts.clock:
        return Decision(book, Restart(Reason.OTHER_CLOCK), sign, begins)
    if facts.awaits_data:
        return Decision(book, None, sign, begins)
    book = count(book, rule, facts.eps, facts.timestep)
    return Decision(book, book.phases[-1], sign, begins)


MAX_RESTARTS = 4
"""Times that one step may begin anew: once for each reason."""


def bounded(model: str, reasons: list[Reason]) -> None:
    """RFCError where a step has begun anew too often."""
    if len(reasons) > MAX_RESTARTS:
        raise RFCError(
            f"{model}: one step began anew {len(reasons)} times, at most {MAX_RESTARTS} are expected: {'; '.join(reasons)}; "
            "call reset() before every generation, prepare() the timesteps as they come, and change the model between generations only"
        )
