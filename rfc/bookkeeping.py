"""Where a generation stands, what it decided and what it did: the host's side of a schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rfc.phase import PhaseName
from rfc.schedules.base import Numbers, Schedule, clock_at
from rfc.state import Clock

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "sigma", "noise_level")
"""Names by which denoising models call the argument that falls from noise to image during a generation."""


@dataclass
class Direction:
    """Which way a sampler's timestep goes from noise to image, learned from its first calls.

    Most fall (1000 to 0); some models are called with one that rises (0 to 1), which looks like a new generation at every step.
    """

    sign: int = 1
    """1: the timestep falls; -1: it rises."""

    def ends(self, generation: Generation, timestep: float | None) -> bool:
        """Whether a call at `timestep` begins a new generation.

        Two generations in a row that never left one timestep, each ended by a move against the direction, were none: the timestep
        goes the other way, and the second takes the first in as its beginning. Other contexts hear of it at their next step.
        """
        if generation.before is not None and generation.step and generation.before.continues(generation.timestep, self):
            generation.absorb()
        if generation.continues(timestep, self):
            return False
        if generation.before is None or generation.moved:
            return True
        self.sign = -self.sign
        generation.absorb()
        return False


@dataclass(kw_only=True)
class Generation:
    """One generation of one context; `decide` once per step, in order."""

    phases: list[PhaseName] = field(default_factory=list)
    eps: list[float | None] = field(default_factory=list)
    totals: list[float | None] = field(default_factory=list)
    """The accumulated error at the moment of each decision, this step's eps included."""
    since: int = 0
    gap: int = 0
    anchors: int = 0
    total: float = 0.0
    timestep: float | None = None
    moved: bool = False
    """Whether its steps were at more than one timestep; a sampler of second order calls twice at each."""
    before: Generation | None = field(default=None, repr=False, compare=False)
    """The one that ended when this began, if it never left one timestep: this may be its second step (`Direction`)."""
    shares_clock: bool = False
    """Whether the first step counts on from the one before, as long as that is in doubt."""
    could_skip: bool = False
    """Whether the schedule that decided could have skipped a step by now."""

    @property
    def step(self) -> int:
        """Number of steps decided so far."""
        return len(self.phases)

    @property
    def nfc(self) -> int:
        """Number of full computations so far."""
        return self.phases.count("FULL")

    def continues(self, timestep: float | None, direction: Direction | None = None) -> bool:
        """Whether a step at `timestep` can belong to this generation: noise never grows within one."""
        sign = 1 if direction is None else direction.sign
        return timestep is None or self.timestep is None or sign * timestep <= sign * self.timestep

    def successor(self, schedule: Schedule) -> Generation:
        """The generation that begins where the timestep moved against the direction.

        Its first step is full in any case. Where the next one is too (a warm-up of 2 or more), what the first writes to the state is
        written again before it is used; so it is written as if both generations were one, which is right if they are.
        """
        if self.moved or not self.step:
            return Generation()
        return Generation(before=self, shares_clock=schedule.warmup >= 2)

    def absorb(self) -> None:
        """Take the generation before in: it was the beginning of this one."""
        before, self.before, self.moved = self.before, None, True
        if before is None:
            return
        self.phases = before.phases + self.phases
        self.eps = before.eps + self.eps
        self.totals = before.totals + self.totals
        if not self.shares_clock:  # the state begins at the second step, which was full
            return
        if len(self.phases) == before.step + 1:
            self.gap = before.since + 1
        self.anchors += before.anchors

    def clock(self, schedule: Schedule) -> tuple[float, float, float]:
        """(k, N, n) of the coming step, in the unit of the schedule; see `Clock`."""
        if self.before is not None and self.shares_clock and not self.phases:
            return self.before.clock(schedule)
        if schedule.unit == "step":
            return float(self.since + 1), float(self.gap), float(self.anchors)
        return _timed(schedule, self.step, self.since + 1, self.gap, self.anchors)

    def decide(self, schedule: Schedule, numbers: dict[str, Tensor], eps: float | None, timestep: float | None) -> PhaseName:
        """Return the phase of the coming step and count it. `eps` is the schedule's error at this step, None without data."""
        anchored = self.anchors > 0
        known = eps is not None and anchored
        self.since += 1
        total = self.total
        if known:
            self.total = _counting(schedule, total, eps)
        if not schedule.is_lagged:
            total = self.total
        if schedule.watches or schedule.is_lagged:
            place = _place(schedule, numbers, self.step, self.since, total)
        else:
            place = _planned(schedule, self.step, self.since)
        phase = schedule.branches[place]
        self.phases.append(phase)
        self.eps.append(eps if known else None)
        self.totals.append(total if known or (anchored and schedule.is_lagged) else None)
        if timestep is not None:
            self._move_to(timestep)
        self.could_skip = self.could_skip or schedule.can_skip(self.step)
        if phase == "FULL":
            self.gap = self.since if self.anchors else 0
            self.anchors += 1
            self.since, self.total = 0, 0.0
        return phase

    def follows(self, timestep: float, direction: Direction) -> bool:
        """Whether the latest step, whose timestep was not known when it was decided, belonged to this generation; if so, it is noted."""
        belonged = self.continues(timestep, direction)
        if belonged:
            self._move_to(timestep)
        return belonged

    def _move_to(self, timestep: float) -> None:
        self.moved = self.moved or (self.timestep is not None and timestep != self.timestep)
        self.timestep = timestep

    def learn(self, schedule: Schedule, eps: float) -> None:
        """Take in the error of the latest step, which was decided without it (`Schedule.is_lagged`)."""
        was_full = self.phases[-1] == "FULL"
        if self.anchors > was_full:
            self.eps[-1] = eps
            if not was_full:
                self.total = _counting(schedule, self.total, eps)

    def never_skipped(self) -> bool:
        """Whether every step was full although the schedule could have skipped one."""
        return self.could_skip and self.nfc == self.step


def _counting(schedule: Schedule, total: float, eps: float | None) -> float:
    """The error that counts after another one; in float32, as a compiled decision adds."""
    return float(torch.tensor((total if schedule.accumulates else 0.0, eps)).sum())


def _place(schedule: Schedule, numbers: Numbers, step: int, since: int, total: float) -> int:
    return int(schedule.phase(numbers, *torch.tensor([step, since, total], dtype=torch.float32).unbind()))


@lru_cache(maxsize=4096)
def _planned(schedule: Schedule, step: int, since: int) -> int:
    """The same for a rule that needs no data: what it says of a step, it says in every generation."""
    return _place(schedule, schedule.numbers(), step, since, 0.0)


@lru_cache(maxsize=4096)
def _timed(schedule: Schedule, step: int, since: int, gap: int, anchors: int) -> tuple[float, float, float]:
    """The clock of a schedule that counts in another unit than steps."""
    k, N, n = clock_at(schedule, schedule.numbers(), *torch.tensor([step, since, gap, anchors], dtype=torch.float32).unbind())
    return float(k), float(N), float(n)


def clock_tensors(values: tuple[float, float, float], device: torch.device) -> Clock:
    """The clock on a device."""
    return Clock.at(*values, device=device)


def timestep_argument(forward: Callable[..., Any]) -> str | None:
    """Name of the argument of `forward` that carries the timestep, None when no name says so."""
    names = inspect.signature(forward).parameters
    like = (name for name in names if "timestep" in name or name.endswith("_time"))
    return next((name for name in TIMESTEP_NAMES if name in names), next(like, None))


def timestep_value(value: Any) -> float | None:
    """Largest timestep of a batch as a host number (a device tensor is read back), None when there is none."""
    if isinstance(value, Tensor):
        return float(value.detach().amax()) if value.numel() else None
    return float(value) if isinstance(value, int | float) else None
