"""Variants of a workload: how each is made and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.estimators import ESTIMATORS, GRAPHS
from benchmarks.latency.compiling import FirstRuns, estimate_arguments, first_runs
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import Calls, timesteps_of


@dataclass
class PendingVariant:
    """A variant to be, and what is known of it."""

    name: str
    make: Callable[[], tuple[Any, Any]]
    """(what is called, what records the phases)."""
    row: dict[str, Any] = field(default_factory=dict)
    variant: TimedVariant | None = None
    first: FirstRuns | None = None
    estimate_inputs: list[Tensor] = field(default_factory=list)
    """What ESTIMATE is called with, where it is timed alone."""


def entries(bench: Bench, model: nn.Module, calls: Calls, plan: rfc.RCS, *, beside: bool) -> list[PendingVariant]:
    """Compiled full computation and estimators; beside them, where wanted, what runs eagerly and what runs on CUDA graphs."""
    timesteps = timesteps_of(calls)

    def method(name: str) -> rfc.Method:
        return rfc.Method(estimator=ESTIMATORS[name], schedule=plan)

    def full(*, graphs: bool) -> tuple[Any, Any]:
        return bench.compiled(model, graphs=graphs), None

    def hoisted(name: str, *, graphs: bool) -> tuple[Any, Any]:
        cached = rfc_fx.transform(model, method(name), config=rfc_fx.Config(hoist=True, regional=bench.regional))
        cached.prepare(timesteps)
        return bench.compiled(cached, graphs=graphs), cached

    def twin(name: str) -> tuple[Any, Any]:
        cached = rfc.eager.cached(model, method(name))
        return cached, cached

    variants = [PendingVariant("full, compiled", partial(full, graphs=False))]
    variants += [PendingVariant(f"{name}, hoisted, compiled", partial(hoisted, name, graphs=False)) for name in ESTIMATORS]
    if beside:
        names = ("Taylor m=1", "RFE m=1")
        variants += [PendingVariant("full, eager", lambda: (model, None))]
        variants += [PendingVariant(f"{name}, eager twin", partial(twin, name)) for name in names]
        variants += [PendingVariant(f"full, {GRAPHS}", partial(full, graphs=True))]
        variants += [PendingVariant(f"{name}, hoisted, {GRAPHS}", partial(hoisted, name, graphs=True)) for name in names]
    return variants


def prepare(bench: Bench, entry: PendingVariant, calls: Calls, leading: int) -> None:
    """Make and compile one variant."""
    start = time.perf_counter()
    call, cache = entry.make()
    if isinstance(cache, rfc_fx.CachedModel):
        with torch.no_grad():
            cache.trace(**calls[0])
            entry.row["transform_s"] = time.perf_counter() - start
            entry.estimate_inputs = estimate_arguments(cache, calls, leading)
    variant = TimedVariant(entry.name, call, cache)
    entry.first = first_runs(variant, calls, leading, bench.device)
    entry.variant = variant
    entry.row["frames"] = entry.first.frames
