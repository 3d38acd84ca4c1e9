"""Run: what all sites of the twin share: the generation, the decision of a step, and the sites' states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rfc.bookkeeping import clock_tensors
from rfc.method import Method
from rfc.phase import FULL, PhaseName
from rfc.record import Direction, Record
from rfc.state import Clock, State, spec_of, zeros


@dataclass
class Run:
    """State that all sites of one step share."""

    method: Method
    numbers: dict[str, Tensor]
    generation: Record = field(default_factory=Record)
    timestep: float | None = None
    phase: PhaseName | None = None
    clock: Clock | None = None
    watched: State | None = None
    """State of the schedule."""
    seen: dict[str, Tensor] = field(default_factory=dict)
    """What the schedule watches, in this step."""

    states: dict[tuple[str, int], State] = field(default_factory=dict)
    """One state per site and stream of tokens: joint attention has two outputs, each with its own input."""
    shapes: tuple[Any, ...] = ()
    """Shapes and dtypes of the last call: another batch or resolution is another generation."""

    is_verifying: bool = False
    """Whether the last block is computed once more, to see how good its estimate was."""
    verified_error: float | None = None
    """Error of the verified draft; it counts from the next step on."""

    tokens: int = 0
    """Number of tokens of the latent."""
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    """Scores of the tokens of each block's streams, by its attention in this step (`rfc.eager.token_wise`)."""
    token_states: dict[str, State] = field(default_factory=dict)
    """Ages and scores of each feed-forward's tokens."""
    last: Tensor | None = None
    """The latent's stream as it left the last block when that ran the last time."""

    def begin(self, timestep: float | None, shapes: tuple[Any, ...], direction: Direction) -> None:
        if self.verified_error is not None and self.generation.step:
            self.generation.learn(self.method.schedule, self.verified_error)
        self.verified_error = None
        if shapes != self.shapes:
            self.generation, self.watched, self.shapes = Record(), None, shapes
        elif direction.ends(self.generation, timestep):
            self.generation = self.generation.successor(self.method.schedule)
            self.watched = self.watched if self.generation.shares_clock else None
        self.timestep, self.phase, self.clock, self.scores = timestep, None, None, {}

    def decide(self, **seen: Tensor) -> PhaseName:
        """Decide at the first site of a step, before anything heavy has run; `seen`: its input I, and the stream where that is known."""
        if self.phase is None:
            device, self.tokens = seen["I"].device, seen["I"].shape[1]
            self.clock = clock_tensors(self.generation.clock(self.method.schedule), device)
            schedule = self.method.schedule
            if "timestep" in schedule.watches:
                seen = {**seen, "timestep": self._timestep(device)}
            watched: dict[str, Tensor] = {name: seen[name] for name in schedule.watches}
            eps = None
            if watched and self.generation.anchors and self.watched is not None:
                eps = float(schedule.error(watched, self.watched, self.clock))
            self.phase = self.generation.decide(schedule, self.numbers, eps, self.timestep)
            self.seen = watched
            is_full = self.phase == FULL.name
            if watched and (is_full or schedule.remembers == "all steps") and not (is_full and schedule.reads_output):
                self.remember(watched)
        return self.phase

    def _timestep(self, device: torch.device) -> Tensor:
        if self.timestep is None:
            raise ValueError(f"{type(self.method.schedule).__name__} reads the timestep, and the model was called with none")
        return torch.tensor([self.timestep], device=device)

    def remember(self, watched: dict[str, Tensor]) -> None:
        """Take in what the schedule watches."""
        assert self.clock is not None
        schedule = self.method.schedule
        old = self.watched or zeros(schedule.slots({name: spec_of(tensor) for name, tensor in watched.items()}), self.clock.k.device)
        self.watched = {**old, **schedule.refresh(old, watched, self.clock)}

    def leave(self, output: Tensor) -> None:
        """Take in the stream behind the first site of a full step, for a schedule that reads it."""
        if self.method.schedule.reads_output and self.seen:
            self.remember({**self.seen, "output": output})
            self.seen = {}

    def streams(self, site: str) -> list[int]:
        """The streams of a site that are remembered."""
        return sorted(stream for name, stream in self.states if name == site)

    def refresh(self, site: str, stream: int, I: Tensor, O: Tensor) -> Tensor:
        """Take in what a full step computed; returns what it adds to it before it hands it on."""
        estimator, clock = self.method.estimator, self.clock
        assert clock is not None
        slots = estimator.slots(spec_of(I), spec_of(O))
        old = self.states.get((site, stream))
        if old is None or {name: spec_of(value) for name, value in old.items()} != slots:
            old = zeros(slots, O.device)
        self.states[site, stream] = estimator.refresh(old, I, O, clock)
        return estimator.correction(old, I, O, clock)

    def estimate(self, site: str, stream: int, I: Tensor) -> Tensor:
        """Forecast a site's output."""
        assert self.clock is not None
        return self.method.estimator.estimate(self.states[site, stream], I, self.clock)


@dataclass
class Now:
    """The run that the current call belongs to."""

    run: Run
