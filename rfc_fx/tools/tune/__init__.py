"""Tune: solver, steps, full steps, weights and granularity for one model, chosen by what was measured on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rfc.method import Method
from rfc.placement.fitted import Recorded, fitted
from rfc.placement.log_snr import LogSNR
from rfc_fx.tools.calibrate.laboratory import Laboratory, Report
from rfc_fx.tools.load import one_line
from rfc_fx.tools.sources import DigitsSource, Source
from rfc_fx.tools.tune.record import TuningError, every_step_full, recorded

SHARES = (0.12, 0.16, 0.2, 0.28, 0.4)
"""Of the steps that are full, that are tried whatever the goal is."""

CORRECTIONS = (0.6, 0.3, 0.0)
"""How much of the fitted correction is tried, the first everywhere."""

REFERENCE = 4
"""Times the most steps that are tried: what samples are measured against where several samplers are."""


@dataclass(frozen=True, kw_only=True)
class TuningGoal:
    """Exactly one of them."""

    seconds: float | None = None
    """Of a generation, as it is measured here."""
    speedup: float | None = None
    """Of a generation over the first sampler with all steps full, both on the same programs."""
    error: float | None = None

    def __post_init__(self) -> None:
        goals = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(goals) != 1:
            raise TuningError(f"tune: exactly one of --time, --speedup and --error is needed, got {', '.join(goals) or 'none'}")


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


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was measured, and what is chosen of it."""

    points: list[Point]
    """All steps full are among them: of the first sampler the first point."""
    chosen: Point
    reference: Float[Tensor, "N C H W"]
    reference_is: str

    @property
    def front(self) -> list[Point]:
        """The points that no other is both faster and nearer than, the fastest first."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda each: (each.seconds, each.error)):
            if not best or point.error < best[-1].error:
                best.append(point)
        return best


def tune(
    source: Source, samplers: Sequence[SamplerChoice], goal: TuningGoal, *, compile: bool = False, report: Report = lambda what: None
) -> Tuned:
    """Draw the source's seeds in many ways and choose: for a time or speed-up the nearest, for an error the fastest.

    Every sampler draws once in full, which `rfc.fitted` is fitted to; at some numbers of full steps rfc.LogSNR and a fitted list are
    measured, at those that the goal asks for also LogSNR by modules and fitted lists with other corrections. Errors are geometric means of
    ||x - x_ref|| / ||x_ref||: x_ref is full computation by the sampler, where there is one; of several the first with four times the most
    steps. Raises TuningError for a goal that nothing reaches.
    """
    for sampler in samplers:
        if sampler.name:
            _Bench(source, sampler, None, False, report).try_out()
    reference, named = None, f"all steps of {samplers[0]}"
    if len(samplers) > 1:
        longest = replace(samplers[0], steps=REFERENCE * max(sampler.steps for sampler in samplers))
        report(f"{longest} in full, as the reference")
        reference, named = _Bench(source, longest, None, False, report).whole(), f"all steps of {longest}"
    benches = [_Bench(source, sampler, reference, compile, report) for sampler in samplers]
    points: list[Point] = []
    limit: float | None = None
    for bench in benches:
        whole = bench.measured(every_step_full(bench.sampler.steps), "all steps full")
        points.append(whole)
        limit = limit or goal.seconds or (None if goal.speedup is None else points[0].seconds / goal.speedup)
        steps = bench.sampler.steps
        budgets = {min(max(2, round(share * steps)), steps) for share in SHARES}
        tried = [point for budget in sorted(budgets) for point in bench.at(budget)]
        if limit is not None and 1 <= (most := most_full_steps(whole, tried[0], limit)) < steps:
            tried += bench.at(most, is_thorough=True)
        if goal.error is not None:
            tried += bench.fewest(goal.error)
        points += dict.fromkeys(tried)
    return Tuned(
        points=points,
        chosen=_chosen(points, goal, limit),
        reference=benches[0].whole() if reference is None else reference,
        reference_is=named,
    )


def most_full_steps(whole: Point, estimated: Point, seconds: float) -> int:
    """The most full steps within a time: a generation's is linear in their number. At most all; below 1 where there are none."""
    each = (whole.seconds - estimated.seconds) / max(whole.nfc - estimated.nfc, 1)
    return min(whole.nfc, estimated.nfc + int((seconds - estimated.seconds) // each)) if each > 0 else whole.nfc


def _chosen(points: Sequence[Point], goal: TuningGoal, limit: float | None) -> Point:
    if goal.error is not None:
        met = [point for point in points if point.error <= goal.error]
        if not met:
            least = min(points, key=lambda point: point.error)
            raise TuningError(f"tune: an error of {goal.error:g} is not reached; the least is {least.error:.2g}, by {least.sampler}")
        return min(met, key=lambda point: (point.seconds, point.error))
    assert limit is not None
    within = [point for point in points if point.seconds <= limit]
    if not within:
        fastest = min(points, key=lambda point: point.seconds)
        asked = f"{limit:.3g} s" if goal.speedup is None else f"a speed-up of {goal.speedup:g} ({limit:.3g} s)"
        raise TuningError(
            f"tune: {asked} is not reached; the fastest takes {fastest.seconds:.3g} s, {fastest.what}, {fastest.nfc} full of "
            f"{fastest.sampler}; ask for less, or pass fewer --steps"
        )
    return min(within, key=lambda point: (point.error, point.seconds))


class _Bench:
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

    def whole(self) -> Float[Tensor, "N C H W"]:
        self._put()
        return self.laboratory.whole()

    def try_out(self) -> None:
        """Two steps in full; TuningError for a scheduler that the pipeline cannot draw with."""
        self._put()
        try:
            self.source.draw(self.source.model, self.source.seeds[0], 2, lambda: None)
        except Exception as error:
            what = f"{self.source.name} cannot draw with {self.sampler}: {type(error).__name__}: {one_line(error)}"
            raise TuningError(f"tune: {what}; leave it out of --scheduler") from error

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
            own = fitted(self.recorded, nfc, corrections=CORRECTIONS[1], full_steps=plain.schedule.full_steps)  # type: ignore[attr-defined]
            yield self.measured(own, f"fitted at LogSNR's steps, corrected by {CORRECTIONS[1]:g}")

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


def with_scheduler(source: Source, scheduler: Any) -> Source:
    """The source, drawing with a scheduler."""
    return replace(source, scheduler=scheduler) if isinstance(source, DigitsSource) else source


def _put(source: Source, scheduler: Any) -> None:
    """Let a pipeline draw with a scheduler."""
    if not isinstance(source, DigitsSource):
        source.pipe.scheduler = scheduler  # type: ignore[attr-defined]


def scheduler_of(source: Source) -> Any:
    """The scheduler that a source draws with."""
    return source.scheduler if isinstance(source, DigitsSource) else source.pipe.scheduler  # type: ignore[attr-defined]
