"""The decision of a step, as a pure function of what is known: which phase it runs, or why it begins anew."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from rfc.bookkeeping import Book, ClockValues, arrive, clock_values, count
from rfc.schedules.base import Numbers, Phase, Schedule
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


class Decision(NamedTuple):
    """What comes of a step that entered, or that was decided."""

    book: Book
    verdict: Phase | Restart | None
    """None for a step that entered, and may go on."""
    sign: int
    begins: bool
    """Whether a new generation began, whose book this is."""


def enter(book: Book, schedule: Schedule, facts: Facts) -> Decision:
    """A call comes, before any program has run; the first two rows of the table of `decide`."""
    arrived = arrive(book, schedule, facts.timestep, facts.sign)
    changed = arrived.begins and facts.model_changed
    return Decision(arrived.book, Restart(Reason.MODEL_CHANGED) if changed else None, arrived.sign, arrived.begins)


def decide(book: Book, schedule: Schedule, numbers: Numbers, facts: Facts) -> Decision:
    """Decide a step: the phase it runs, counted in the book, or why it begins anew. `numbers` are the schedule's thresholds.

    | where | what is seen | verdict | book |
    |---|---|---|---|
    | entering | the timestep moves back | go on; Restart(MODEL_CHANGED) if the model did | the next generation's |
    | entering | so it did in two generations of one timestep each | go on | both joined, the direction turned |
    | deciding | the timestep is not the prepared one | Restart(OTHER_ORDER) | as it was |
    | deciding | the timestep moves back, the model changed | Restart(MODEL_CHANGED) | the next generation's |
    | deciding | the timestep moves back, values are hoisted | Restart(HOISTED_BEFORE) | the next generation's |
    | deciding | the timestep moves back | FULL: a generation's first step | the next generation's, counted |
    | deciding | generations are joined, and so the clock is another | Restart(OTHER_CLOCK) | both joined |
    | deciding | otherwise | the schedule's phase | counted |

    A restart begins with entering again; in one step no reason but MODEL_CHANGED can come twice.
    """
    if not facts.as_prepared:
        return Decision(book, Restart(Reason.OTHER_ORDER), facts.sign, False)
    arrived = arrive(book, schedule, facts.timestep, facts.sign)
    if arrived.begins and facts.model_changed:
        reason = Reason.MODEL_CHANGED
    elif arrived.begins and facts.hoists:
        reason = Reason.HOISTED_BEFORE
    elif not arrived.begins and facts.clock is not None and clock_values(arrived.book, schedule) != facts.clock:
        reason = Reason.OTHER_CLOCK
    else:
        counted = count(arrived.book, schedule, numbers, facts.eps, facts.timestep)
        return Decision(counted, counted.phases[-1], arrived.sign, arrived.begins)
    return Decision(arrived.book, Restart(reason), arrived.sign, arrived.begins)


MAX_RESTARTS = 4
"""Times that one step may begin anew: once for each reason."""


def bounded(model: str, reasons: list[Reason]) -> None:
    """RFCError where a step has begun anew too often."""
    if len(reasons) > MAX_RESTARTS:
        raise RFCError(
            f"{model}: one step began anew {len(reasons)} times, at most {MAX_RESTARTS} are expected: {'; '.join(reasons)}; "
            "call reset() before every generation, prepare() the timesteps as they come, and change the model between generations only"
        )
