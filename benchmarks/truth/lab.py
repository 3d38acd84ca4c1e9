"""The laboratory: samples of a group of seeds by any sampler and cache, against the converged solution and against full computation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import rfc
import rfc_fx
from benchmarks.latency.timing import compiled_alone
from benchmarks.quality.entry import uniform_steps
from benchmarks.quality.similarity import relative_l2
from benchmarks.quality.workloads import CALIBRATED, CLASSES, EVALUATED, GROUP
from benchmarks.truth.converged import STEPS, converged, guided, prediction_of
from benchmarks.truth.fits import FITTED, TO_TRUTH, Refined
from benchmarks.truth.levels import Levels
from benchmarks.truth.models import MODELS, Images, Labelled
from benchmarks.truth.rows import CHOOSE
from benchmarks.truth.solvers import SOLVERS, draw, spaced
from rfc.estimators.base import MOST_ORDER
from rfc.method import Method, programs_of
from rfc.placement.fitted import Recorded
from rfc.placement.noise_levels import noise_levels
from rfc.placement.output_gains import output_gains
from rfc.schedules.base import NoiseLevels
from rfc_fx.runtime.recall import Recall
from rfc_fx.runtime.warnings import NothingSkippedWarning
from rfc_fx.tools.tune.bench import beginnings
from rfc_fx.tools.tune.record import Outputs, every_step_full

OWN = "own"
"""The sampler that a model's users have by default; its spacing is the shift, where it has one."""


class Sampler(NamedTuple):
    """A solver at levels of a spacing (`benchmarks.truth.solvers`, `benchmarks.truth.levels`), or the model's own."""

    solver: str
    spacing: str
    steps: int


class Errors(NamedTuple):
    """Relative L2 of each sample."""

    truth: list[float]
    """To the converged solution."""
    full: list[float]
    """To full computation by the same sampler; empty for that itself."""


Placing = Callable[[tuple[float, ...], int], Method]
"""Makes a method from log(alpha / sigma) at each call and the number of full steps."""


def at_equal_gaps(estimator: rfc.Estimator, granularity: str | None = None) -> Placing:
    """An estimator at TaylorSeer's full steps."""
    return lambda lambdas, n: rfc.Method(
        estimator=estimator, schedule=rfc.Listed(full_steps=uniform_steps(len(lambdas), n)), granularity=granularity
    )


def by_log_snr(granularity: str, *, is_flow: bool) -> Placing:
    """LogSNR as it is for flows, or for all others ("by angle"), with one estimate for so much of the model."""
    return lambda lambdas, n: _with(rfc.LogSNR(lambdas=lambdas, is_flow=is_flow, nfc=n), granularity)


def _with(method: Method, granularity: str) -> Method:
    return replace(method, granularity=granularity)


METHODS: dict[str, Placing] = {
    "FORA": at_equal_gaps(rfc.Reuse()),
    "TaylorSeer m=1": at_equal_gaps(rfc.Taylor(order=1)),
    "TaylorSeer m=2": at_equal_gaps(rfc.Taylor(order=2)),
    "Chebyshev": lambda lambdas, n: _with(rfc.Chebyshev(nfc=n, num_steps=len(lambdas)), "module"),
    "LogSNR by angle, module": by_log_snr("module", is_flow=False),
    "LogSNR by angle, stack": by_log_snr("stack", is_flow=False),
    "LogSNR by angle, output": by_log_snr("output", is_flow=False),
    "LogSNR by angle, prediction": by_log_snr("prediction", is_flow=False),
    "LogSNR of flows, stack": by_log_snr("stack", is_flow=True),
    "LogSNR of flows, prediction": by_log_snr("prediction", is_flow=True),
}


class Lab:
    """A loaded model and groups of seeds. What was drawn in full is kept while the object lives."""

    def __init__(self, name: str, size: int, *, is_drawn_often: bool = False) -> None:
        self.model, self.size, self.is_drawn_often = MODELS[name], size, is_drawn_often
        """`size`: samples of a group; `is_drawn_often`: cached models are compiled, and full steps that were computed are recalled."""
        self.transformer, self.scheduler = self.model.load()
        self.levels = Levels.of(self.scheduler)
        self.labels = torch.arange(size) % CLASSES
        self._held: dict[Any, tuple[rfc_fx.CachedModel, Any]] = {}
        self._whole: dict[tuple[str, Any], Images] = {}
        self._recorded: dict[Sampler, Recorded] = {}
        self._kept: dict[tuple[Refined, Sampler, int], Method] = {}

    def noise(self, group: str) -> Images:
        """Of a group: "choose", on which choices are made, or "0", "1", ..., which are judged."""
        first = CALIBRATED if group == CHOOSE else EVALUATED + int(group) * GROUP
        return self.model.noise(list(range(first, first + self.size)))

    def truth(self, group: str, steps: int = STEPS) -> Images:
        """The converged solution."""
        if (group, steps) not in self._whole:
            predict = self._predict(self.model.labelled(self.transformer))
            self._whole[group, steps] = converged(predict, self.levels, prediction_of(self.scheduler), self.noise(group), steps)
        return self._whole[group, steps]

    def full(self, group: str, sampler: Sampler) -> Images:
        """Full computation."""
        if (group, sampler) not in self._whole:
            self._whole[group, sampler] = self._draw(self.model.labelled(self.transformer), group, sampler)
        return self._whole[group, sampler]

    def plain(self, group: str, sampler: Sampler) -> Errors:
        """A solver without a cache."""
        return Errors(_errors(self.full(group, sampler), self.truth(group)), [])

    def recorded(self, sampler: Sampler) -> Recorded:
        """Full computation by a sampler on the seeds for choosing, as weights are fitted to it."""
        if sampler not in self._recorded:
            model, _ = self._transformed(every_step_full(sampler.steps))
            taken = Outputs(model, sampler.steps)
            hook = model.register_forward_hook(taken.take)
            with model.generation():
                self._draw(self.model.labelled(model), CHOOSE, sampler)
            hook.remove()
            scheduler, more = self.scheduler_of(sampler)
            gains = output_gains(scheduler, sampler.steps, **more)
            self._recorded[sampler] = Recorded(
                taken.gram, gains, NoiseLevels(self.lambdas(sampler), None, self.model.is_flow), taken.predictions
            )
        return self._recorded[sampler]

    def method(self, name: str, sampler: Sampler, n: int) -> Method:
        """The method of that name with n full steps."""
        if isinstance(kind := (FITTED | TO_TRUTH).get(name), Refined):
            return self._refined(kind, sampler, n)
        if kind is not None:
            return kind.method(self.recorded(sampler), n)
        return METHODS[name](self.lambdas(sampler), n)

    def _refined(self, kind: Refined, sampler: Sampler, n: int) -> Method:
        if (kind, sampler, n) not in self._kept:
            is_small = self.noise(CHOOSE)[0].numel() <= 64
            few = Lab(self.model.name, kind.small if is_small else kind.size, is_drawn_often=True)
            begin = [every_step_full(n, min(n, MOST_ORDER), "prediction")] if kind.is_solver else beginnings(self.recorded(sampler), n)
            target = few.truth(CHOOSE) if kind.to_truth else few.full(CHOOSE, sampler)
            self._kept[kind, sampler, n] = rfc.refined(
                begin, lambda method: few.drawn(CHOOSE, sampler, method, n), target, rounds=kind.rounds + (n <= kind.again)
            )
        return self._kept[kind, sampler, n]

    def drawn(self, group: str, sampler: Sampler, method: Method, n: int) -> Images:
        """Samples by a method that computes n steps in full."""
        model, call = self._transformed(method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)
            with model.generation():
                samples = self._draw(self.model.labelled(call), group, sampler)
        if model.stats.nfc != n:
            raise AssertionError(f"{self.model.name}: {method} computed {model.stats.nfc} of {sampler.steps} steps in full, expected {n}")
        return samples

    def cached(self, group: str, sampler: Sampler, method: Method, n: int, *, to_full: bool = True, to_truth: bool = True) -> Errors:
        """`n` full steps of the sampler's by a method."""
        samples = self.drawn(group, sampler, method, n)
        truth = _errors(samples, self.truth(group)) if to_truth else []
        return Errors(truth, _errors(samples, self.full(group, sampler)) if to_full else [])

    def lambdas(self, sampler: Sampler) -> tuple[float, ...]:
        """log(alpha / sigma) at each call."""
        scheduler, more = self.scheduler_of(sampler)
        if sampler.solver == OWN:
            return noise_levels(scheduler, sampler.steps, **more).lambdas
        return tuple(float(level) for level in self.levels.lambdas(scheduler.times))

    def scheduler_of(self, sampler: Sampler) -> tuple[Any, dict[str, float]]:
        """A fresh scheduler, and what its `set_timesteps` wants beside the number of steps."""
        if sampler.solver != OWN:
            return spaced(SOLVERS[sampler.solver], self.scheduler, sampler.spacing, sampler.steps), {}
        if self.scheduler.config.get("use_dynamic_shifting"):
            from benchmarks.training.emoji_model import shift

            return type(self.scheduler).from_config(self.scheduler.config), {"mu": shift()}
        own = {"shift": float(sampler.spacing.removeprefix("shift "))} if self.model.is_flow else {}
        return type(self.scheduler).from_config(self.scheduler.config, **own), {}

    def _draw(self, labelled: Labelled, group: str, sampler: Sampler) -> Images:
        scheduler, more = self.scheduler_of(sampler)
        with torch.no_grad():
            return draw(self._predict(labelled), scheduler, self.noise(group), sampler.steps, **more)

    def _predict(self, labelled: Labelled) -> Callable[[Images, float], Images]:
        return guided(labelled, self.labels, self.model.guidance)

    def _transformed(self, method: Method) -> tuple[rfc_fx.CachedModel, Any]:
        """The cached model, and what is called in its place."""
        key = programs_of(method)
        if key not in self._held:
            model = rfc_fx.transform(self.transformer, method)
            if self.is_drawn_often:
                model.driver.recall = Recall()
            self._held[key] = model, compiled_alone(model) if self.is_drawn_often else model
        model, call = self._held[key]
        model.method = method
        return model, call


def _errors(samples: Images, reference: Images) -> list[float]:
    errors: Tensor = relative_l2(samples, reference)
    return [float(f"{error:.4g}") for error in errors.tolist()]
