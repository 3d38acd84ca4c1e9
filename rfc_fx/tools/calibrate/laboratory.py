"""Laboratory: draws the same seeds by one method after another, and measures them against full computation."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

import rfc_fx
from rfc.estimators.base import Estimator
from rfc.method import Method
from rfc.schedules.base import Schedule
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
    """Geometric mean over the samples of ||x - x_full|| / ||x_full||."""


class Laboratory:
    """Draws the seeds of a source by one method after another; methods of one forecast run on the same programs."""

    def __init__(self, source: Source, steps: int, *, compile: bool = False, report: Report = lambda what: None) -> None:
        self.source, self.steps, self.compile, self.report = source, steps, compile, report
        self._made: dict[Any, tuple[rfc_fx.CachedModel, Any]] = {}
        self._whole: Float[Tensor, "N C H W"] | None = None
        self.seen: dict[tuple[Estimator, Schedule], Measured] = {}

    def _transformed(self, method: Method) -> tuple[rfc_fx.CachedModel, Any]:
        """The model with that forecast, captured once, and what calls it."""
        key = method.estimator, method.schedule.in_graph
        if key not in self._made:
            cached = rfc_fx.transform(self.source.model, method)
            self._made[key] = cached, torch.compile(cached, fullgraph=True) if self.compile else cached
        cached, call = self._made[key]
        cached.method = method
        return cached, call

    def whole(self) -> Float[Tensor, "N C H W"]:
        """Full computation of all seeds, drawn once."""
        if self._whole is None:
            self.report("full computation")
            self._whole = torch.cat([self.source.draw(self.source.model, seed, self.steps, lambda: None) for seed in self.source.seeds])
        return self._whole

    def measure(self, method: Method, what: str, *, quality: bool = True) -> Measured:
        """Draw all seeds by a method."""
        if (key := (method.estimator, method.schedule)) in self.seen:
            return self.seen[key]
        self.report(what)
        cached, call = self._transformed(method)
        samples, counts = [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)  # the NFC says it
            for seed in self.source.seeds:
                with cached.generation():
                    samples.append(self.source.draw(call, seed, self.steps, lambda: None))
                counts.append(statistics.fmean(record.nfc for record in cached.contexts.values()))
        drawn = torch.cat(samples)
        result = Measured(statistics.fmean(counts), *self._quality(drawn)) if quality else Measured(statistics.fmean(counts), inf, 0.0)
        if quality:
            self.seen[key] = result
        return result

    def _quality(self, drawn: Float[Tensor, "N C H W"]) -> tuple[float, float]:
        whole = self.whole()
        lengths = whole.flatten(1).norm(dim=1)
        errors = (drawn - whole).flatten(1).norm(dim=1) / lengths
        error = float(errors.clamp(min=1e-12).log().mean().exp()) if errors.any() else 0.0
        return psnr(drawn, whole), error
