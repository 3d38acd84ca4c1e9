"""Bench: one sampler of a source, and what was measured of the ways to draw with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.method import Method
from rfc.placement.even import even_lists
from rfc.placement.fitted import Recorded, fitted
from rfc.placement.log_snr import LogSNR
from rfc.placement.refined import refined
from rfc_fx.tools.calibrate.laboratory import Laboratory, Report
from rfc_fx.tools.load import one_line
from rfc_fx.tools.sources import DigitsSource, Source
from rfc_fx.tools.tune.record import TuningError, gains_and_levels, recorded, timesteps_asked

TRIED = 2
"""Steps in which an exchanged scheduler is tried out."""

CORRECTIONS = (0.6, 0.3, 0.0)
"""How much of the fitted correction is tried, the first everywhere."""


@dataclass(frozen=True, kw_only=True)
class SamplerChoice:
    """A scheduler and its steps."""

    name: str
    """Class of the scheduler; "" for the source's own."""
    scheduler: Any
    steps: int

    def __str__(self) -> str:
        return f"{self.name or type(self.scheduler).__name__}, {self.steps} steps"


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A way to draw, and what was measured of it."""

    sampler: SamplerChoice
    method: Method
    what: str
    """The method in words."""
    nfc: int
    error: float
    seconds: float
    samples: Float[Tensor, "N C H W"]


class Bench:
    """One sampler, the record of its full computation, and what was measured of it."""

    def __init__(
        self, source: Source, sampler: SamplerChoice, reference: Float[Tensor, "N C H W"] | None, compile: bool, report: Report
    ) -> None:
        self.sampler = sampler
        self.source = with_scheduler(source, sampler.scheduler)
        self._put: Callable[[], None] = lambda: _put(source, sampler.scheduler)
        self.laboratory = Laboratory(self.source, sampler.steps, compile=compile, timed=True, reference=reference, report=report)
        self._recorded: Recorded | None = None
        self._points: dict[Method, Point] = {}
        self.rounds = 0
        self.other: Bench | None = None
        """Draws the same by other seeds, which lists are refined by."""

    def whole(self) -> Float[Tensor, "N C H W"]:
        self._put()
        return self.laboratory.whole()

    def try_out(self) -> None:
        """Two steps in full; TuningError for a scheduler that the pipeline cannot draw with, or that no list can be fitted to."""
        self._put()
        scheduler = self.sampler.scheduler
        try:
            with timesteps_asked(scheduler) as asked:
                self.source.draw(self.source.model, self.source.seeds[0], TRIED, lambda: None)
        except Exception as error:
            what = f"{self.source.name} cannot draw with {self.sampler}: {type(error).__name__}: {one_line(error)}"
            raise TuningError(f"tune: {what}; leave it out of --scheduler") from error
        if (taken := len(scheduler.timesteps)) != TRIED:
            raise TuningError(
                f"tune: {self.sampler} calls the model {taken} times in {TRIED} steps; expected one a step: leave it out of --scheduler"
            )
        try:
            _, levels = gains_and_levels(scheduler, asked[-1] if asked else {"num_inference_steps": TRIED})
        except TuningError as error:
            raise TuningError(f"{error}; leave it out of --scheduler") from error
        if levels.lambdas[0] > levels.lambdas[-1]:
            raise TuningError(f"tune: {self.sampler} makes noise of pictures; expected pictures of noise: leave it out of --scheduler")

    @property
    def recorded(self) -> Recorded:
        if self._recorded is None:
            self._put()
            self.laboratory.report(f"recording {self.sampler}")
            self._recorded = recorded(self.source, self.sampler.scheduler, self.sampler.steps)
        return self._recorded

    def at(self, nfc: int, *, is_thorough: bool = False) -> Iterator[Point]:
        """LogSNR and a fitted list with a number of full steps; `is_thorough`: every other way, too."""
        levels = self.recorded.levels
        plain = LogSNR(lambdas=levels.lambdas, end=levels.end, is_flow=levels.is_flow, nfc=nfc)
        yield self.measured(plain, "LogSNR")
        for corrections in CORRECTIONS if is_thorough else CORRECTIONS[:1]:
            yield self.measured(fitted(self.recorded, nfc, corrections=corrections), f"fitted, corrected by {corrections:g}")
        if is_thorough:
            yield self.measured(replace(plain, granularity="module"), "LogSNR by modules")
            if plain.default_granularity != "stack":
                yield self.measured(replace(plain, granularity="stack"), "LogSNR of all blocks")
            own = fitted(self.recorded, nfc, corrections=CORRECTIONS[1], full_steps=plain.schedule.full_steps)  # type: ignore[attr-defined]
            yield self.measured(own, f"fitted at LogSNR's steps, corrected by {CORRECTIONS[1]:g}")
        if is_thorough and self.other is not None:
            yield self.measured(self._refined(nfc, self.other), "refined")

    def _refined(self, nfc: int, other: Bench) -> Method:
        """A fitted list, refined by the other seeds; numbers are moved by more than the model's rounding."""
        types = (weight.dtype for weight in self.source.model.parameters() if weight.is_floating_point())  # quantised ones may be integers
        delta = 3 * torch.finfo(next(types, torch.float32)).eps ** 0.5
        target = other.whole()
        other._put()

        def draw(method: Method) -> Tensor:
            other.laboratory.measure(method, "", quality=False)
            assert other.laboratory.samples is not None
            return other.laboratory.samples

        starts = beginnings(self.recorded, nfc)
        with other.laboratory.recalling():
            return refined(starts, draw, target, rounds=self.rounds, delta=delta, report=self.laboratory.report)

    def fewest(self, error: float) -> Iterator[Point]:
        """Numbers of full steps around the fewest that keep an error."""
        low, high = 1, self.sampler.steps
        while high - low > 1:
            middle = (low + high) // 2
            found = list(self.at(middle, is_thorough=True))
            yield from found
            low, high = (low, middle) if min(point.error for point in found) <= error else (middle, high)

    def measured(self, method: Method, what: str) -> Point:
        """Draw by a method, once."""
        if method not in self._points:
            self._put()
            got = self.laboratory.measure(method, f"{self.sampler}: {what}, {method.schedule.nfc} full")
            samples = self.laboratory.samples
            assert samples is not None
            self._points[method] = Point(
                sampler=self.sampler,
                method=method,
                what=what,
                nfc=round(got.nfc),
                error=got.error,
                seconds=got.seconds,
                samples=samples,
            )
        return self._points[method]


def beginnings(recorded: Recorded, nfc: int) -> list[Method]:
    """Where refining may begin: lists fitted with every correction, and polynomials at full steps even in log-SNR, by granularity."""
    granularities: tuple[Literal["stack", "output", "prediction"], ...] = ("stack", "output", "prediction")
    fits = [
        replace(fitted(recorded, nfc, corrections=corrections, granularity=granularity), granularity=granularity)
        for granularity in granularities
        for corrections in CORRECTIONS
    ]
    return [*fits, *(method for granularity in ("stack", "prediction") for method in even_lists(recorded.levels, nfc, granularity))]


def with_scheduler(source: Source, scheduler: Any) -> Source:
    """The source, drawing with a scheduler."""
    return replace(source, scheduler=scheduler) if isinstance(source, DigitsSource) else source


def with_other_seeds(source: Source) -> Source:
    """The source with the seeds that follow its own."""
    other = copy.copy(source)
    other.seeds = [seed + max(source.seeds) + 1 - min(source.seeds) for seed in source.seeds]  # type: ignore[misc]
    return other


def _put(source: Source, scheduler: Any) -> None:
    """Let a pipeline draw with a scheduler."""
    if not isinstance(source, DigitsSource):
        source.pipe.scheduler = scheduler  # type: ignore[attr-defined]


def scheduler_of(source: Source) -> Any:
    """The scheduler that a source draws with."""
    return source.scheduler if isinstance(source, DigitsSource) else source.pipe.scheduler  # type: ignore[attr-defined]


def most_steps(scheduler: Any) -> int | None:
    """The steps that the model was trained on, more of which a scheduler does not take; None where it does not say."""
    most = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    return most if isinstance(most, int) else None
