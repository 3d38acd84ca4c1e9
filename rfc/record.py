"""The record of a generation, and a book kept for whoever counts one step after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from rfc.bookkeeping import Book, ClockValues, Rule, absorb, arrive, clock_values, continues, count, learn, never_skipped, successor
from rfc.phase import PhaseName
from rfc.schedules.base import Numbers, Schedule


@dataclass
class Record:
    """What one generation of one context did; `decide` once per step, in order, where no driver does."""

    book: Book = field(default_factory=Book)
    schedule: Schedule | None = field(default=None, repr=False, compare=False)
    """What decided the latest step."""

    @property
    def phases(self) -> list[PhaseName]:
        """The phase of every step."""
        return list(self.book.phases)

    @property
    def eps(self) -> list[float | None]:
        """The schedule's error at every step, None where there was none."""
        return list(self.book.eps)

    @property
    def totals(self) -> list[float | None]:
        """The accumulated error at the moment of each decision, this step's eps included."""
        return list(self.book.totals)

    @property
    def restarts(self) -> list[str]:
        """Why steps were begun anew, one reason for each time."""
        return list(self.book.restarts)

    @property
    def step(self) -> int:
        """Number of steps decided so far."""
        return self.book.step

    @property
    def nfc(self) -> int:
        """Number of full computations so far."""
        return self.book.nfc

    @property
    def timestep(self) -> float | None:
        """The timestep of the latest step, where it is known."""
        return self.book.timestep

    @property
    def since(self) -> int:
        """Steps since the last full one."""
        return int(self.book.counts.since)

    @property
    def anchors(self) -> int:
        """Full steps that the state knows of."""
        return int(self.book.counts.anchors)

    @property
    def shares_clock(self) -> bool:
        """See `Book.shares_clock`."""
        return self.book.shares_clock

    def clock(self, schedule: Schedule) -> ClockValues:
        """(k, N, n) of the coming step, in the unit of the schedule, and its weights; see `rfc.state.Clock`."""
        return clock_values(self.book, schedule)

    def decide(self, schedule: Schedule, numbers: Numbers, eps: float | None, timestep: float | None) -> PhaseName:
        """Return the phase of the coming step and count it. `eps` is the schedule's error at this step, None without data."""
        self.book, self.schedule = count(self.book, Rule(schedule, numbers), eps, timestep), schedule
        return self.book.phases[-1]

    def learn(self, schedule: Schedule, eps: float) -> None:
        """Take in the error of the latest step, which was decided without it (`Schedule.is_lagged`)."""
        self.book = learn(self.book, schedule, eps)

    def continues(self, timestep: float | None, direction: Direction | None = None) -> bool:
        """Whether a step at `timestep` can belong to this generation: noise never grows within one."""
        return continues(self.book, timestep, 1 if direction is None else direction.sign)

    def successor(self, schedule: Schedule) -> Record:
        """The generation that begins where the timestep moved against the direction."""
        return Record(successor(self.book, schedule))

    def absorb(self) -> None:
        """Take the generation before in: it was the beginning of this one."""
        self.book = absorb(self.book)

    def never_skipped(self) -> bool:
        """Whether every step was full although the schedule could have skipped one."""
        return self.schedule is not None and never_skipped(self.book, self.schedule)


@dataclass
class Direction:
    """Which way a sampler's timestep goes from noise to image, learned from its first calls.

    Most fall (1000 to 0); some models are called with one that rises (0 to 1), which looks like a new generation at every step.
    """

    sign: int = 1
    """1: the timestep falls; -1: it rises."""

    def ends(self, generation: Record, timestep: float | None) -> bool:
        """Whether a call at `timestep` begins a new generation (`rfc.bookkeeping.arrive`); if so, `Record.successor` is it."""
        schedule = generation.schedule
        if schedule is None:  # it has no step yet
            return False
        book, self.sign, begins = arrive(generation.book, schedule, timestep, self.sign)
        if not begins:
            generation.book = book
        return begins
