"""Laboratory: draws the same seeds by one method after another, and measures them against full computation."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

import rfc_fx
from rfc.estimators.base import Estimator
from rfc.method import Method, programs_of
from rfc.schedules.base import Schedule
from rfc_fx.runtime.recall import Recall
from rfc_fx.runtime.warnings import NothingSkippedWarning
from rfc_fx.tools.compare import psnr
from rfc_fx.tools.sources import Source

Report = Callable[[str], None]
"""Called with a line about each measurement before it begins."""


class Measured(NamedTuple):
    """Measurements of a method over the seeds."""

    nfc: float
    """Mean number of full computations of a generation."""
    psnr_db: float
    """Against full computation of the same seeds; inf where nothing was skipped."""
    error: float
    """Geometric mean over the samples of ||x - x_full|| / ||x_full||; inf where one is no number."""
    seconds: float = 0.0
    """Median of a draw, after one on the same programs that is not counted; 0 where that was not asked for."""


class Laboratory:
    """Draws the seeds of a source by one method after another; methods of one forecast run on the same programs."""

    def __init__(
        self,
        source: Source,
        steps: int,
        *,
        compile: bool = False,
        timed: bool = False,
        reference: Float[Tensor, "N C H W"] | None = None,
        report: Report = lambda what: None,
    ) -> None:
        self.source, self.steps, self.compile, self.timed, self.report = source, steps, compile, timed, report
        self._made: dict[Any, tuple[rfc_fx.CachedModel, Any]] = {}
        self._whole = reference
        """What samples are measured against: full computation of the same steps, unless something else was passed."""
        self.seen: dict[tuple[Estimator, Schedule, str | None], Measured] = {}
        self._recall: Recall | None = None
        self.samples: Float[Tensor, "N C H W"] | None = None
        """Of the latest measurement."""

    @contextmanager
    def recalling(self) -> Iterator[Recall]:
        """Inside, full steps of a seed that were drawn before are not computed again (`Recall`); for forecasts that read no data."""
        self._recall = Recall()
        try:
            yield self._recall
        finally:
            self._recall = None
            for cached, _ in self._made.values():
                cached.driver.recall = None

    def _transformed(self, method: Method) -> tuple[rfc_fx.CachedModel, Any]:
        """The model with that forecast, captured once, and what calls it."""
        key = programs_of(method)
        if is_new := key not in self._made:
            cached = rfc_fx.transform(self.source.model, method)
            fullgraph = self._recall is None  # a step that is recalled runs no frame, which fullgraph takes for a failure
            self._made[key] = cached, torch.compile(cached, fullgraph=fullgraph) if self.compile else cached
        cached, call = self._made[key]
        if is_new and self.timed:
            cached.method = method.exercised()
            with cached.generation():
                self.source.draw(call, self.source.seeds[0], self.steps, lambda: None)
        cached.method, cached.driver.recall = method, self._recall
        return cached, call

    def whole(self) -> Float[Tensor, "N C H W"]:
        """Full computation of all seeds, drawn once."""
        if self._whole is None:
            self.report("full computation")
            self._whole = torch.cat([self.source.draw(self.source.model, seed, self.steps, lambda: None) for seed in self.source.seeds])
        return self._whole

    def measure(self, method: Method, what: str, *, quality: bool = True) -> Measured:
        """Draw all seeds by a method."""
        if (key := (method.estimator, method.schedule, method.granularity)) in self.seen:
            return self.seen[key]
        self.report(what)
        cached, call = self._transformed(method)
        samples, counts, seconds = [], [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)  # the NFC says it
            for seed in self.source.seeds:
                start = time.perf_counter()
                with cached.generation():
                    samples.append(self.source.draw(call, seed, self.steps, lambda: None))  # on the host: nothing is left to wait for
                seconds.append(time.perf_counter() - start)
                counts.append(statistics.fmean(record.nfc for record in cached.contexts.values()))
        self.samples = torch.cat(samples)
        taken = statistics.median(seconds) if self.timed else 0.0
        psnr_db, error = self._quality(self.samples) if quality else (inf, 0.0)
        if error == inf:
            self.report(f"{what}: samples are no numbers; left out")
        result = Measured(statistics.fmean(counts), psnr_db, error, taken)
        if quality:
            self.seen[key] = result
        return result

    def _quality(self, drawn: Float[Tensor, "N C H W"]) -> tuple[float, float]:
        whole = self.whole()
        lengths = whole.flatten(1).norm(dim=1)
        errors = (drawn - whole).flatten(1).norm(dim=1) / lengths
        if not errors.isfinite().all():
            return -inf, inf
        error = float(errors.clamp(min=1e-12).log().mean().exp()) if errors.any() else 0.0
        return psnr(drawn, whole), error
