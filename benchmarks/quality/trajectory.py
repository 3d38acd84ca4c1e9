"""Trajectories: the true input I and output O of every site at every step of a generation in full computation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

import rfc.eager
from benchmarks.quality.workloads import Bench, Lot, Sampler
from rfc.eager.recording import RecordingReuse

Pair = tuple[Tensor, Tensor]
"""I and O of one site at one step, (N, T, D): conditional samples, then unconditional ones."""


@dataclass(frozen=True)
class Trajectory:
    """What was recorded of one batch."""

    sites: list[str]
    steps: list[list[Pair]]
    """By step, then by site."""

    def inputs(self, site: int) -> list[Tensor]:
        return [pairs[site][0] for pairs in self.steps]

    def outputs(self, site: int) -> list[Tensor]:
        return [pairs[site][1] for pairs in self.steps]


def record(bench: Bench, sampler: Sampler, lot: Lot, part: slice, granularity: str = "module") -> Trajectory:
    """Draw one batch in full computation and record it; `granularity` says what a site is."""
    recorder = RecordingReuse()
    twin = rfc.eager.cached(bench.model, recorder.method(), granularity)
    steps: list[list[Pair]] = []

    def step() -> None:
        steps.append(list(recorder.pairs))
        recorder.pairs.clear()

    bench.draw(twin, sampler, lot, part, step)
    return Trajectory(_names(bench.model, len(steps[0])), steps)


def _names(model: nn.Module, count: int) -> list[str]:
    """The names of the sites, in the order in which they run; numbers where the names do not fit."""
    names = [name for name, module in model.named_modules() if hasattr(module, "to_q") or type(module).__name__ == "FeedForward"]
    return names if len(names) == count else [f"site {i}" for i in range(count)]
