"""The closed loop: whole generations by every method at an equal number of full computations, against full computation."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import rfc
import rfc_fx
from benchmarks.latency.methods import full_steps
from benchmarks.quality.entry import Entry, Facts, uniform_steps
from benchmarks.quality.planned import planned_steps
from benchmarks.quality.similarity import relative_l2
from benchmarks.quality.trajectory import Trajectory, record
from benchmarks.quality.workloads import CALIBRATED, FORCED, Bench, Images, Lot, Sampler
from rfc.eager.recording import ratios_of
from rfc.method import Method, programs_of
from rfc.phase import FULL
from rfc_fx.ir.ops import flops
from rfc_fx.ir.phase import PREFIX, TIMESTEP
from rfc_fx.runtime.summary import pattern
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.tools.calibrate import at, listed, named
from rfc_fx.tools.calibrate.bisection import Calibrated, calibrated
from rfc_fx.tools.calibrate.placement_search import Steps, best_placed, starts

Told = Callable[[str], None]
"""Hears what is being done."""


PLANNED_ON = 2
"""Samples whose recorded inputs plan a schedule."""


@dataclass(frozen=True)
class Drawn:
    """The samples of a lot, and what drawing them took."""

    samples: Images
    nfc: list[float]
    """Full computations of every batch's generation."""
    seconds: list[float]
    """Of every batch's generation."""
    flops_share: float
    """Of full computation's floating-point operations."""
    pattern: str
    """The phases of the first batch's generation (`rfc_fx.runtime.summary.pattern`)."""


class Loop:
    """Draws a lot by one method after another. One transformed model is held at a time: its state is large."""

    def __init__(self, bench: Bench, lot: Lot, *, compiles: bool = False, calibrated_on: int = 1, told: Told = lambda what: None) -> None:
        self.bench, self.lot, self.compiles, self.told = bench, lot, compiles, told
        self.calibrated_on = Lot.of(range(CALIBRATED, CALIBRATED + calibrated_on * lot.batch), lot.batch)
        self._held: tuple[Any, rfc_fx.CachedModel, Callable[..., Any]] | None = None
        self._recorded: dict[tuple[str, str], Trajectory] = {}
        self._thresholds: dict[tuple[str, Any], dict[int, float]] = {}
        """By sampler and kind of schedule, then by budget."""
        self._whole: dict[str, Images] = {}
        """The calibration samples in full computation, by sampler."""

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def full(self, sampler: Sampler) -> Drawn:
        """The lot in full computation, by the model itself."""
        model = torch.compile(self.bench.model, fullgraph=True) if self.compiles else self.bench.model
        if self.compiles:
            self.bench.draw(model, sampler, self.lot, self.lot.batches[0])
        parts, seconds = [], []
        for part in self.lot.batches:
            self.told("full computation")
            start = time.perf_counter()
            parts.append(self.bench.draw(model, sampler, self.lot, part))
            seconds.append(time.perf_counter() - start)
        return Drawn(torch.cat(parts), [float(sampler.steps)] * len(parts), seconds, 1.0, "#" * sampler.steps)

    def draw(self, method: Method, sampler: Sampler, lot: Lot | None = None) -> Drawn:
        """A lot by a method; what was captured and compiled for another threshold or list serves again."""
        lot = lot or self.lot
        cached, call = self._transformed(method, sampler)
        parts: list[Tensor] = []
        nfc, seconds, shares, patterns = [], [], [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)  # said by the NFC
            for part in lot.batches:
                with cached.generation():
                    start = time.perf_counter()
                    parts.append(self.bench.draw(call, sampler, lot, part))
                    seconds.append(time.perf_counter() - start)
                nfc.append(statistics.fmean(generation.nfc for generation in cached.contexts.values()))
                shares.append(_flops_share(cached))
                patterns.append(pattern(cached.stats))
        return Drawn(torch.cat(parts), nfc, seconds, statistics.fmean(shares), patterns[0])

    def _transformed(self, method: Method, sampler: Sampler) -> tuple[rfc_fx.CachedModel, Callable[..., Any]]:
        key = programs_of(method)
        if self._held is None or self._held[0] != key:
            self._held = None
            if self.compiles:
                torch._dynamo.reset()  # what was compiled for the last method goes with it
            granularity = "module" if method.granularity is None else None  # the same for all that leave it open
            config = rfc_fx.Config(hoist=self.compiles, regional=self.compiles, granularity=granularity)
            cached = rfc_fx.transform(self.bench.model, method, config=config)
            call = torch.compile(cached, fullgraph=True) if self.compiles else cached
            self._held = key, cached, call
            first = self.lot.batches[0]
            with warnings.catch_warnings():
                for of_few_steps in (NothingSkippedWarning, StepsMismatchWarning):
                    warnings.simplefilter("ignore", of_few_steps)
                self.bench.draw(call, _short(sampler, method), self.lot, first)  # captures and compiles, outside every time
                cached.reset()
        _, cached, call = self._held
        cached.method = method
        return cached, call

    # ---- an equal number of full computations ------------------------------------------------------------------------

    def method(self, entry: Entry, sampler: Sampler, budget: int) -> tuple[Method, Calibrated | None]:
        """The entry's method with so many full computations, or as close as it comes on samples that are not judged."""
        if entry.listed is not None:
            return entry.listed(uniform_steps(sampler.steps, budget)), None
        if entry.placed is not None:
            method = entry.placed(budget, self.facts(sampler))
            return (self._moved(entry, method, sampler), None) if entry.moved else (method, None)
        assert entry.thresholded is not None
        make, facts = entry.thresholded, self.facts(sampler)

        def measure(threshold: float) -> float:
            self.told(f"{entry.name}: threshold {threshold:.3g}")
            method = make(threshold, facts)
            if _is_planned(method):
                return float(len(full_steps(method.schedule, sampler.steps)))
            return statistics.fmean(self.draw(method, sampler, self.calibrated_on).nfc)

        known = self._thresholds.setdefault((sampler.name, self._kind(entry, sampler)), {})
        guess = known[min(known, key=lambda other: abs(other - budget))] if known else None
        calibration = calibrated(measure, budget, low=entry.low, high=entry.high, guess=guess)
        known[budget] = calibration.threshold
        return make(calibration.threshold, facts), calibration

    def _moved(self, entry: Entry, method: Method, sampler: Sampler) -> Method:
        """The forecast and the full steps, as many as the method's, with which the error of the calibration samples is smallest."""
        whole, placed = self._full(sampler), listed(method.schedule, sampler.steps)

        def error(estimator: rfc.Estimator, steps: Steps) -> float:
            self.told(f"{entry.name}: {named(estimator)} at full steps {' '.join(map(str, steps))}")
            drawn = self.draw(at(method, estimator, placed, steps), sampler, self.calibrated_on).samples
            return float(relative_l2(drawn, whole).log().mean().exp())

        begin = starts(len(placed.full_steps), sampler.steps, placed.full_steps)
        best = best_placed(error, entry.forecasts or [method.estimator], begin, sampler.steps, most=entry.moved)
        return at(method, best.forecast, placed, best.steps)

    def _full(self, sampler: Sampler) -> Images:
        """The calibration samples in full computation, drawn once."""
        if sampler.name not in self._whole:
            lot = self.calibrated_on
            self._whole[sampler.name] = torch.cat([self.bench.draw(self.bench.model, sampler, lot, part) for part in lot.batches])
        return self._whole[sampler.name]

    def remember(self, entry: Entry, sampler: Sampler, budget: int, threshold: float) -> None:
        """Begin with this threshold, found before, for like schedules; it is measured again."""
        self._thresholds.setdefault((sampler.name, self._kind(entry, sampler)), {})[budget] = threshold

    def _kind(self, entry: Entry, sampler: Sampler) -> Any:
        """What methods have in common whose thresholds are near each other: the kind of their schedule."""
        assert entry.thresholded is not None
        method = entry.thresholded(entry.high, self.facts(sampler))
        return entry.name if _is_planned(method) else (method.schedule.in_graph, method.schedule.warmup)

    def facts(self, sampler: Sampler) -> Facts:
        """What may be known of a sampler, measured when it is asked for."""

        def planned(tau: float, where: Literal["first", "all"]) -> list[int]:
            return planned_steps(self._recording(sampler, "module"), tau, where)

        def ratios() -> list[float]:
            return ratios_of(self._recording(sampler, "stack").outputs(0))

        return Facts(sampler.steps, ratios, planned, sampler.scheduler(self.bench.scheduler))

    def _recording(self, sampler: Sampler, granularity: str) -> Trajectory:
        if (sampler.name, granularity) not in self._recorded:
            self.told(f"recording {sampler.what}")
            lot = Lot.of(range(FORCED, FORCED + PLANNED_ON), PLANNED_ON)
            self._recorded[sampler.name, granularity] = record(self.bench, sampler, lot, lot.batches[0], granularity)
        return self._recorded[sampler.name, granularity]


def _is_planned(method: Method) -> bool:
    """Whether its full steps are known beforehand."""
    return not method.schedule.watches and not method.schedule.is_lagged


def _short(sampler: Sampler, method: Method) -> Sampler:
    """A few steps, among which is an estimated one."""
    return Sampler(
        name=sampler.name, what=sampler.what, steps=min(sampler.steps, method.schedule.warmup + 2), budgets=(), scheduler=sampler.scheduler
    )


def _flops_share(cached: rfc_fx.CachedModel) -> float:
    """Floating-point operations of the latest generation as a share of as many full steps'."""
    costs = {phase: flops(program.graph.nodes) for phase, program in cached.programs.items()}
    shared = costs.get(PREFIX, 0) + costs.get(TIMESTEP, 0)
    phases = cached.stats.phases
    return sum(costs[phase] + shared for phase in phases) / (len(phases) * (costs[FULL.name] + shared))
