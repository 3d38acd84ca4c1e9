"""The bookkeeping of a generation: since, gap, anchors and total, the same lines for the host and for a compiled graph."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from rfc.counts import Counts, advance, observe
from rfc.phase import FULL, PhaseName
from rfc.schedules.base import Numbers, Schedule, clock_at
from rfc.state import Clock

ClockValues = tuple[float, ...]
"""(k, N, n) and the weights as host numbers; see `rfc.state.Clock`."""


class Book(NamedTuple):
    """What one generation did and where it stands, for one context. A value: every step makes a new one."""

    phases: tuple[PhaseName, ...] = ()
    eps: tuple[float | None, ...] = ()
    totals: tuple[float | None, ...] = ()
    """The accumulated error at the moment of each decision, this step's eps included."""
    counts: Counts = Counts()
    timestep: float | None = None
    has_moved: bool = False
    """Whether its steps were at more than one timestep; a sampler of second order calls twice at each."""
    before: Book | None = None
    """The generation that ended when this one began, if it never left one timestep: this may be its second step (`arrive`)."""
    shares_clock: bool = False
    """While it is undecided whether this continues the generation before: whether its first step uses that one's clock."""
    clock: ClockValues = (1.0, 0.0, 0.0)
    """The clock of the latest step."""
    restarts: tuple[str, ...] = ()
    """Why steps were begun anew (`rfc_fx.runtime.decide`)."""
    ahead: int = 0
    """Steps of the generation that this context was not called for (guidance off, image to image)."""

    @property
    def step(self) -> int:
        """Number of steps decided so far."""
        return len(self.phases)

    @property
    def number(self) -> int:
        """Number of the coming step, as the schedule counts: from the generation's first."""
        return len(self.phases) + self.ahead

    @property
    def nfc(self) -> int:
        """Number of full computations so far."""
        return self.phases.count(FULL.name)


def continues(book: Book, timestep: float | None, sign: int = 1) -> bool:
    """Whether a step at `timestep` can belong to the generation: noise never grows within one. `sign` -1: the timestep rises."""
    last = book.timestep
    return timestep is None or last is None or sign * timestep <= sign * last


def successor(book: Book, schedule: Schedule) -> Book:
    """The generation that begins where the timestep moved against the direction.

    Its first step is full in any case. Where the next one is too (a warm-up of 2 or more), what the first writes to the state is
    written again before it is used; so it is written as if both generations were one, which is right if they are.
    """
    if book.has_moved or not book.phases:
        return Book()
    return Book(before=book, shares_clock=schedule.warmup >= 2)


def absorb(book: Book) -> Book:
    """Take the generation before in: it was the beginning of this one."""
    before = book.before
    if before is None:
        return book._replace(has_moved=True)
    phases, counts = before.phases + book.phases, book.counts
    if book.shares_clock:  # otherwise the state begins at the second step, which was full
        gap = before.counts.since + 1 if len(phases) == before.step + 1 else counts.gap
        counts = counts._replace(gap=gap, anchors=counts.anchors + before.counts.anchors)
    return book._replace(
        phases=phases,
        eps=before.eps + book.eps,
        totals=before.totals + book.totals,
        counts=counts,
        has_moved=True,
        before=None,
        restarts=before.restarts + book.restarts,
    )


def left_out(book: Book, number: int) -> Book:
    """The book where calls were left out: what the state holds is too old; the coming step has this number and is full."""
    return book._replace(counts=Counts(), ahead=number - book.step, timestep=None, before=None, has_moved=book.step > 0)


def arrive(book: Book, schedule: Schedule, timestep: float | None, sign: int = 1) -> tuple[Book, int, bool]:
    """(book, sign, begins): whether a call at `timestep` begins a new generation, whose book this is, and which way the timestep goes.

    `sign`: 1 where it falls from noise to image, -1 where it rises.
    Two generations in a row that never left one timestep, each ended by a move against the direction, were none: the timestep goes
    the other way, and the second takes the first in as its beginning. Other contexts hear of it at their next step.
    """
    if book.before is not None and book.phases and continues(book.before, book.timestep, sign):
        book = absorb(book)
    if continues(book, timestep, sign):
        return book, sign, False
    if book.before is None or book.has_moved:
        return successor(book, schedule), sign, True
    return absorb(book), -sign, False


def clock_values(book: Book, schedule: Schedule) -> ClockValues:
    """(k, N, n) of the coming step, in the unit of the schedule, and its weights; see `Clock`."""
    if book.before is not None and book.shares_clock and not book.phases:
        book = book.before
    return _clock(schedule, book.number, book.counts)


def _clock(schedule: Schedule, number: int, counts: Counts) -> ClockValues:
    since, gap, anchors, _ = counts
    if schedule.unit == "step" and not schedule.num_weights:
        return since + 1.0, float(gap), float(anchors)
    return _timed(schedule, number, since + 1, gap, anchors)


Step = tuple[PhaseName, Counts, ClockValues]
"""A step as it was decided: its phase, the counts after it, and its clock."""


class Rule:
    """A schedule with its thresholds, as the host decides by it: what does not change from step to step is looked up once."""

    __slots__ = ("_steps", "accumulates", "branches", "is_lagged", "is_planned", "last", "numbers", "schedule")

    def __init__(self, schedule: Schedule, numbers: Numbers) -> None:
        self.schedule, self.numbers = schedule, numbers
        self.is_lagged, self.accumulates, self.branches = schedule.is_lagged, schedule.accumulates, schedule.branches
        self.is_planned = not (schedule.is_lagged or schedule.watches)
        """Whether no data decide."""
        self.last = (schedule.num_steps or 0) if schedule.is_placed else None
        """Steps of a generation whose full steps are chosen before it begins."""
        self._steps: dict[tuple[int, Counts], Step] = {}

    def step(self, number: int, counts: Counts, total: float) -> Step:
        """Step `number`, with the counts before it; `total` is the error that counts. Where no data decide, it is worked out once."""
        if not self.is_planned:
            return self._step(number, counts, total)
        if (step := self._steps.get((number, counts))) is None:
            step = self._steps[number, counts] = self._step(number, counts, total)
        return step

    def _step(self, number: int, counts: Counts, total: float) -> Step:
        phase: PhaseName = self._phase(number, counts.since + 1, total) if counts.anchors else "FULL"
        return phase, advance(counts, phase == "FULL"), _clock(self.schedule, number, counts)

    def _phase(self, step: int, since: int, total: float) -> PhaseName:
        """The phase of step number `step`, `since` steps after the last full one."""
        if self.is_planned:
            return self.branches[_planned(self.schedule, step, since)]
        return self.branches[_decided(self.schedule, self.numbers, step, since, total)]


def count(book: Book, rule: Rule, eps: float | None, timestep: float | None) -> Book:
    """Decide the coming step by the rule, and count it: its phase is the last of the book's.

    `eps` is the schedule's error at this step, None without data.
    """
    phases, errors, totals, counts, last, has_moved, before, shares_clock, _, restarts, ahead = book
    is_lagged, had, anchors = rule.is_lagged, counts.total, counts.anchors
    known = eps is not None and anchors > 0
    if known:
        counts = observe(counts, eps, accumulates=rule.accumulates)
    total = had if is_lagged else counts.total
    phase, after, clock = rule.step(len(phases) + ahead, counts, total)
    return Book(
        (*phases, phase),
        (*errors, eps if known else None),
        (*totals, total if known or (is_lagged and anchors > 0) else None),
        after,
        last if timestep is None else timestep,
        has_moved or (timestep is not None and last is not None and timestep != last),
        before,
        shares_clock,
        clock if before is None else clock_values(book, rule.schedule),
        restarts,
        ahead,
    )


def move_to(book: Book, timestep: float) -> Book:
    """The book with the timestep of its latest step, which was not known when that was decided."""
    return book._replace(timestep=timestep, has_moved=book.has_moved or (book.timestep is not None and timestep != book.timestep))


def learn(book: Book, schedule: Schedule, eps: float) -> Book:
    """The book with the error of its latest step, which was decided without it (`Schedule.is_lagged`)."""
    was_full = book.phases[-1] == FULL.name
    if book.counts.anchors <= was_full:
        return book
    counts = book.counts if was_full else observe(book.counts, eps, accumulates=schedule.accumulates)
    return book._replace(eps=(*book.eps[:-1], eps), counts=counts)


def never_skipped(book: Book, schedule: Schedule) -> bool:
    """Whether every step was full although the schedule could have skipped one."""
    return book.nfc == book.step and schedule.can_skip(book.step)


def _decided(schedule: Schedule, numbers: Numbers, step: int, since: int, total: float) -> int:
    return int(schedule.phase(numbers, *torch.tensor([step, since, total], dtype=torch.float32).unbind()))


@lru_cache(maxsize=4096)
def _planned(schedule: Schedule, step: int, since: int) -> int:
    """The same for a rule that needs no data: what it says of a step, it says in every generation."""
    return _decided(schedule, schedule.numbers(), step, since, 0.0)


@lru_cache(maxsize=4096)
def _timed(schedule: Schedule, step: int, since: int, gap: int, anchors: int) -> ClockValues:
    """The clock of a schedule that counts in another unit than steps, or has weights."""
    clock = clock_at(schedule, schedule.numbers(), *torch.tensor([step, since, gap, anchors], dtype=torch.float32).unbind())
    return tuple(clock.packed().tolist())


def clock_tensors(values: ClockValues, device: torch.device) -> Clock:
    """The clock on a device."""
    return Clock.at(*values, device=device)
