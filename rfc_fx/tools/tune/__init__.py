"""Tune: solver, steps, full steps, weights and granularity for one model, chosen by what was measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite, log2

from jaxtyping import Float
from torch import Tensor

from rfc_fx.tools.calibrate.laboratory import Report
from rfc_fx.tools.sources import Source
from rfc_fx.tools.tune.bench import Bench, Point, SamplerChoice, most_steps, scheduler_of, with_other_seeds
from rfc_fx.tools.tune.record import TuningError, every_step_full

__all__ = ["Point", "SamplerChoice", "Tuned", "TuningGoal", "most_full_steps", "scheduler_of", "tune", "ways"]

SHARES = (0.12, 0.16, 0.2, 0.28, 0.4)
"""Of the steps that are full, that are tried whatever the goal is."""

THOROUGH = 6
"""Ways to draw with one number of full steps where every way is tried, about (`Bench.at`)."""

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
    source: Source,
    samplers: Sequence[SamplerChoice],
    goal: TuningGoal,
    *,
    rounds: int = 0,
    compile: bool = False,
    report: Report = lambda what: None,
) -> Tuned:
    """Draw the source's seeds in many ways and choose: for a time or speed-up the nearest, for an error the fastest.

    Every sampler draws once in full, which `rfc.fitted` is fitted to; at some numbers of full steps rfc.LogSNR and a fitted list are
    measured, at those that the goal asks for also LogSNR by modules, fitted lists with other corrections and, with `rounds` above 0, a
    list refined by so many rounds of drawing as many other seeds (`rfc.refined`). Errors are geometric means of
    ||x - x_ref|| / ||x_ref||: x_ref is full computation by the sampler, where there is one; of several the first with four times the most
    steps. Raises TuningError for a goal that nothing reaches.
    """
    _check(source, samplers)
    for sampler in samplers:
        if sampler.name:
            Bench(source, sampler, None, False, report).try_out()
    reference, named = None, f"all steps of {samplers[0]}"
    if len(samplers) > 1:
        most = REFERENCE * max(sampler.steps for sampler in samplers)
        longest = replace(samplers[0], steps=min(most, most_steps(samplers[0].scheduler) or most))
        report(f"{longest} in full, as the reference")
        reference, named = Bench(source, longest, None, False, report).whole(), f"all steps of {longest}"
    benches = [Bench(source, sampler, reference, compile, report) for sampler in samplers]
    if rounds:
        others = with_other_seeds(source)
        target = None if reference is None else Bench(others, longest, None, False, report).whole()
        for bench in benches:
            bench.rounds, bench.other = rounds, Bench(others, bench.sampler, target, compile, lambda what: None)
    points: list[Point] = []
    limit: float | None = None
    for bench in benches:
        whole = bench.measured(every_step_full(bench.sampler.steps), "all steps full")
        points.append(whole)
        limit = limit or goal.seconds or (None if goal.speedup is None else points[0].seconds / goal.speedup)
        steps = bench.sampler.steps
        tried = [point for budget in _budgets(steps) for point in bench.at(budget)]
        if limit is not None and 1 <= (most := most_full_steps(whole, tried[0], limit)) < steps:
            tried += bench.at(most, is_thorough=True)
        if goal.error is not None:
            tried += bench.fewest(goal.error)
        points += dict.fromkeys(point for point in tried if isfinite(point.error))
    return Tuned(
        points=points,
        chosen=_chosen(points, goal, limit),
        reference=benches[0].whole() if reference is None else reference,
        reference_is=named,
    )


def ways(samplers: Sequence[SamplerChoice], goal: TuningGoal) -> int:
    """How many ways to draw are measured, about; refining draws other seeds beside them."""
    numbers = [1.0 if goal.error is None else log2(sampler.steps) for sampler in samplers]  # of full steps tried in every way
    few = sum(2 + 2 * len(_budgets(sampler.steps)) for sampler in samplers)  # all steps full, recording, and two ways for each number
    return few + round(sum(numbers) * THOROUGH) + (len(samplers) > 1)


def _budgets(steps: int) -> list[int]:
    return sorted({min(max(2, round(share * steps)), steps) for share in SHARES})


def _check(source: Source, samplers: Sequence[SamplerChoice]) -> None:
    """TuningError for what no list can be fitted to, before anything is drawn."""
    for sampler in samplers:
        if (most := most_steps(sampler.scheduler)) is not None and sampler.steps > most:
            raise TuningError(f"tune: --steps must be at most {most}, the steps the model was trained on, got {sampler.steps}")


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
