"""Calibrate a method on samples: a number of full computations, or most savings within a bound on quality.

Of a method with a threshold that threshold is found; of one that places its full steps (`rfc.LogSNR`, `rfc.Chebyshev`) the steps
themselves and the forecast.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import NamedTuple

from rfc.estimators.base import Estimator
from rfc.estimators.newton import Newton
from rfc.estimators.relational import RFE
from rfc.method import Method
from rfc.phase import FULL
from rfc.placement.log_snr import LogSNRPlaced
from rfc.record import Record
from rfc.schedules.base import Schedule
from rfc.schedules.fixed import Placed
from rfc_fx.errors import RFCError
from rfc_fx.tools.calibrate.bisection import calibrated, largest_threshold
from rfc_fx.tools.calibrate.laboratory import Laboratory, Measured, Report
from rfc_fx.tools.calibrate.placement_search import Steps, best_placed, starts
from rfc_fx.tools.sources import Source

LOW, HIGH = 1e-3, 20.0
"""Between which it is looked for."""


LISTS = 60
"""Lists of full steps that are drawn at most to find the best of them."""


def forecasts(method: Method) -> tuple[Estimator, ...]:
    """A placed method's own forecast, and those that are better at such steps on some models (README, "How good").

    What the model returns is forecast from itself: the blocks' input has another shape (`rfc.Method.default_granularity`).
    """
    has_input = "prediction" not in (method.granularity, method.default_granularity)
    others = (Newton(order=2), RFE(order=1), RFE(order=2)) if has_input else (Newton(order=2), Newton(order=1))
    return tuple(dict.fromkeys((method.estimator, *others)))


class CalibrationError(RFCError):
    """A goal that cannot be reached, or a method without anything to calibrate."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Exactly one of them."""

    nfc: float | None = None
    psnr: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        goals = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(goals) != 1:
            raise CalibrationError(f"calibrate: exactly one of nfc, psnr and max_error is needed, got {', '.join(goals) or 'none'}")

    def loss(self, measured: Measured) -> float:
        """Quantity to minimise; the goal is met at `bound` or below."""
        return measured.error if self.psnr is None else -measured.psnr_db

    @property
    def bound(self) -> float:
        """Of `loss`; -inf for a number of full computations, where less error is always better."""
        if self.psnr is not None:
            return -self.psnr
        return -inf if self.max_error is None else self.max_error

    def is_met(self, measured: Measured) -> bool:
        """Whether the bound on quality holds."""
        return self.loss(measured) <= self.bound

    @property
    def text(self) -> str:
        """The goal in words."""
        if self.nfc is not None:
            return f"NFC {self.nfc:g}"
        return f"a PSNR of at least {self.psnr:g} dB" if self.psnr is not None else f"an error of at most {self.max_error:g}"


class Calibrated(NamedTuple):
    """The method as it was found, and what it gave."""

    method: Method
    threshold: float | None
    """None for a method that has none."""
    measured: Measured
    tried: int
    """Number of methods measured."""


def check_calibratable(method: Method) -> None:
    """CalibrationError for a method that neither places a number of full steps nor has a threshold."""
    schedule = method.schedule
    if schedule.nfc is None and schedule.threshold is None:
        raise CalibrationError(
            f"calibrate: {method.name} decides without a threshold; choose its interval, or a method with RCS, or rfc.LogSNR"
        )


def calibrate(
    source: Source,
    method: Method,
    goal: Goal,
    steps: int,
    *,
    compile: bool = False,
    lists: int = LISTS,
    report: Report = lambda what: None,
) -> Calibrated:
    """Find the threshold: by bisection on the mean NFC over the seeds, or the largest one that keeps the bound on quality.

    For `rfc.LogSNR` and `rfc.Chebyshev`: with the best forecast of `forecasts`, and from the best of some lists on, move full steps while
    the error over the seeds falls (at most `lists` are drawn); for a bound on quality, find the fewest full steps that keep it first, and
    then, as long as moving them keeps it, fewer ones (at most `lists` for each number).
    Raises CalibrationError for a method without a threshold or for another number of steps, an NFC beyond `steps`, or a quality that
    nothing reaches.
    """
    if goal.nfc is not None and not 1 <= goal.nfc <= steps:
        raise CalibrationError(f"calibrate: nfc must be from 1 to the number of steps {steps}, got {goal.nfc:g}")
    check_calibratable(method)
    if method.schedule.nfc is not None:
        nfc = _whole(goal.nfc)
        try:
            schedule = method.schedule.with_nfc(None).bound(steps).with_nfc(nfc)
        except ValueError as error:
            raise CalibrationError(f"calibrate: expected a method for the {steps} steps that are drawn: {error}") from error
        return _placed(Laboratory(source, steps, compile=compile, report=report), method.with_schedule(schedule), goal, lists)
    laboratory = Laboratory(source, steps, compile=compile, report=report)
    tried: set[float] = set()

    def measure(threshold: float, *, quality: bool = True) -> Measured:
        tried.add(threshold)
        return laboratory.measure(method.with_threshold(threshold), f"threshold {threshold:.4g}", quality=quality)

    if goal.nfc is not None:
        threshold: float | None = calibrated(lambda at: measure(at, quality=False).nfc, goal.nfc, low=LOW, high=HIGH).threshold
    else:
        threshold = largest_threshold(lambda at: goal.is_met(measure(at)), low=LOW, high=HIGH)
    if threshold is None:
        raise _unreached(goal, f"at threshold {LOW:g}", measure(LOW), steps)
    return Calibrated(method.with_threshold(threshold), threshold, measure(threshold), len(tried))


def _whole(nfc: float | None) -> int | None:
    if nfc is not None and nfc != int(nfc):
        raise CalibrationError(f"calibrate: full steps are placed, so nfc must be a whole number, got {nfc:g}")
    return None if nfc is None else int(nfc)


def _placed(laboratory: Laboratory, method: Method, goal: Goal, lists: int) -> Calibrated:
    """The forecast and the full steps of least error for that many; or the fewest that keep a bound on quality."""
    steps = laboratory.steps

    def measured(nfc: int) -> Measured:
        return laboratory.measure(method.with_nfc(nfc), f"{nfc} full steps")

    def moved(nfc: int) -> Method:
        own = listed(method.with_nfc(nfc).schedule, steps)

        def loss(estimator: Estimator, full_steps: Steps) -> float:
            what = f"{named(estimator)} at full steps {' '.join(map(str, full_steps))}"
            return goal.loss(laboratory.measure(at(method, estimator, own, full_steps), what))

        tried = forecasts(method)
        best = best_placed(loss, tried, starts(nfc, steps, own.full_steps), steps, most=lists, enough=goal.bound)
        return at(method, best.forecast, own, best.steps)

    if goal.nfc is not None:
        best = moved(int(goal.nfc))
        return Calibrated(best, None, laboratory.measure(best, ""), len(laboratory.seen))
    if not goal.is_met(measured(steps)):
        raise _unreached(goal, "with every step full", measured(steps), steps)
    fewest = bisect_left(range(1, steps), True, key=lambda nfc: goal.is_met(measured(nfc))) + 1
    own = listed(method.with_nfc(fewest).schedule, steps)
    best = at(method, method.estimator, own, own.full_steps)
    while fewest > 1 and goal.is_met(laboratory.measure(fewer := moved(fewest - 1), "")):
        best, fewest = fewer, fewest - 1
    return Calibrated(best, None, laboratory.measure(best, ""), len(laboratory.seen))


def listed(schedule: Schedule, steps: int) -> Placed:
    """The full steps of a schedule that needs no data, as a list in the same unit of time."""
    generation, numbers = Record(), schedule.numbers()
    phases = [generation.decide(schedule, numbers, None, None) for _ in range(steps)]
    full_steps = [step for step, phase in enumerate(phases) if phase == FULL.name]
    return Placed(full_steps=full_steps, num_steps=steps, unit=schedule.unit)


def named(estimator: Estimator) -> str:
    """A forecast as people call it: "RFE m=2"."""
    damped = f" damped by {estimator.damping:g}" if isinstance(estimator, Newton) and estimator.damping != 1 else ""
    return f"{type(estimator).__name__} m={estimator.orders}{damped}"


def at(method: Method, estimator: Estimator, own: Placed, full_steps: Sequence[int]) -> Method:
    """The method with another forecast and other full steps; a forecast that is told more than the time has a list that tells it."""
    if estimator.num_weights and isinstance(method.schedule, LogSNRPlaced):
        return replace(method, estimator=estimator, schedule=method.schedule.at(full_steps))
    return replace(method, estimator=estimator, schedule=replace(own, full_steps=full_steps))


def _unreached(goal: Goal, where: str, best: Measured, steps: int) -> CalibrationError:
    return CalibrationError(
        f"calibrate: {goal.text} is not reached: {where} (NFC {best.nfc:.1f} of {steps}) the PSNR is "
        f"{best.psnr_db:.1f} dB, the error {best.error:.2g}; ask for less, or for another method"
    )
