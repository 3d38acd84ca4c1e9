"""Judging: all figures of drawn samples, against full computation of the same seeds and against real pictures."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.quality.bootstrap import ratio_of_geometric_means
from benchmarks.quality.closed_loop import Drawn
from benchmarks.quality.frechet import Moments, frechet, moments
from benchmarks.quality.similarity import finite_mean, geometric_mean, psnr, relative_l2, ssim
from benchmarks.quality.workloads import Bench, Classifier, Images

LOOKED_AT = 500
"""Pictures that the classifier sees at once."""


class Judge:
    """A classifier and the moments of real pictures."""

    def __init__(self, bench: Bench, classifier: Classifier) -> None:
        self.classifier = classifier
        real = bench.workload.real()
        self.real_count = len(real)
        self.real = self.moments(real)

    @torch.no_grad()
    def moments(self, images: Images) -> dict[str, Moments]:
        """Of the features and of their spatial variant."""
        parts = images.float().clamp(-1, 1).split(LOOKED_AT)
        looks = {"fd": self.classifier.features, "sfd": self.classifier.spatial}
        return {name: moments(torch.cat([look(part) for part in parts])) for name, look in looks.items()}

    @torch.no_grad()
    def accuracy(self, images: Images, labels: Tensor) -> float:
        """Share of the samples in which the classifier reads the wanted class."""
        read = self.classifier.logits(images.float().clamp(-1, 1)).argmax(1)
        return float((read.cpu() == labels).float().mean())


@dataclass(frozen=True)
class ReferenceSamples:
    """Samples of full computation, with what every comparison with them needs."""

    drawn: Drawn
    moments: dict[str, Moments] = field(repr=False)

    @classmethod
    def of(cls, drawn: Drawn, judge: Judge) -> ReferenceSamples:
        return cls(drawn, judge.moments(drawn.samples))


@dataclass(frozen=True)
class Cell:
    """One method at one budget: its samples and all figures."""

    drawn: Drawn
    reference: ReferenceSamples
    judge: Judge
    labels: Tensor
    groups: int

    @cached_property
    def errors(self) -> Float[Tensor, " N"]:
        """Relative L2 error of each sample against full computation of the same seed."""
        return relative_l2(self.drawn.samples, self.reference.drawn.samples)

    def figures(self) -> dict[str, Any]:
        """Everything that is told of the cell, with units in the names; what full computation has no use for is left out of it."""
        samples, drawn = self.drawn.samples, self.drawn
        own = self.judge.moments(samples)
        figures = {
            "nfc": statistics.fmean(drawn.nfc),
            "nfc_min": min(drawn.nfc),
            "nfc_max": max(drawn.nfc),
            "flops_share": drawn.flops_share,
            "pattern": drawn.pattern,
            "seconds_median": statistics.median(drawn.seconds),
            "seconds_min": min(drawn.seconds),
            "seconds_max": max(drawn.seconds),
            **{name: frechet(own[name], self.judge.real[name]) for name in own},
            "accuracy": self.judge.accuracy(samples, self.labels),
        }
        if drawn is self.reference.drawn:
            return figures
        reference = self.reference.drawn.samples
        ones = torch.ones_like(self.errors)
        interval = ratio_of_geometric_means(self.errors, ones)
        quantiles = torch.quantile(self.errors, torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
        return figures | {
            "error": interval.value,
            "error_low": interval.low,
            "error_high": interval.high,
            "error_median": quantiles[0],
            "error_p90": quantiles[1],
            "error_by_group": [geometric_mean(part) for part in self.errors.chunk(self.groups)],
            "psnr_db": finite_mean(psnr(samples, reference)),
            "ssim": float(ssim(samples, reference).mean()),
            **{f"{name}2fc": frechet(own[name], self.reference.moments[name]) for name in own},
        }
