"""Trajectories: the true input I and output O of every site at every step of a generation in full computation."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn

import rfc
import rfc.eager
from benchmarks.quality.workloads import Bench, Lot, Sampler
from rfc.estimators.base import Coefficients
from rfc.state import Clock, SlotSpec, State

Pair = tuple[Tensor, Tensor]
"""I and O of one site at one step, (N, T, D): conditional samples, then unconditional ones."""


@dataclass(frozen=True, kw_only=True)
class RecordingReuse(rfc.Reuse):
    """Takes down what every site was given and gave, in the order in which they run."""

    taken: list[Pair] = field(default_factory=list, compare=False, repr=False)

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        return {}

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        self.taken.append((I.detach().clone(), O.detach().clone()))
        return {}

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        raise NotImplementedError("every recorded step is full")


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
    twin = rfc.eager.cached(bench.model, rfc.Method(estimator=recorder, schedule=rfc.Every(interval=1, warmup=1)), granularity)
    steps: list[list[Pair]] = []

    def step() -> None:
        steps.append(list(recorder.taken))
        recorder.taken.clear()

    bench.draw(twin, sampler, lot, part, step)
    return Trajectory(_names(bench.model, len(steps[0])), steps)


def _names(model: nn.Module, count: int) -> list[str]:
    """The names of the sites, in the order in which they run; numbers where the names do not fit."""
    names = [name for name, module in model.named_modules() if hasattr(module, "to_q") or type(module).__name__ == "FeedForward"]
    return names if len(names) == count else [f"site {i}" for i in range(count)]


def magnitude_ratios(trajectory: Trajectory) -> list[float]:
    """|r(t)| / |r(t-1)| of the stack's residual r from one step to the next, per token, mean over tokens and samples; first 1.

    MagCache's calibration (arXiv 2506.09045, its released code).
    """
    norms = [O.float().norm(dim=-1) for O in trajectory.outputs(0)]
    return [1.0, *(float((now / before).mean()) for before, now in pairwise(norms))]
