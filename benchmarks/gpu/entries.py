"""Variants of a workload: how each is made and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.estimators import method
from benchmarks.gpu.plan import BLOCKS, EAGER, GRAPHS, TWIN, Row
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

    @property
    def on_graphs(self) -> bool:
        """Whether it runs on CUDA graphs."""
        return self.name.endswith(GRAPHS)


def entries(bench: Bench, rows: Iterable[Row], model: nn.Module, calls: Calls, plan: rfc.RCS) -> list[PendingVariant]:
    """The planned rows of a workload, nothing made yet."""
    return [PendingVariant(row.name, partial(_made, bench, row, model, calls, plan)) for row in rows]


def _made(bench: Bench, row: Row, model: nn.Module, calls: Calls, plan: rfc.RCS) -> tuple[Any, Any]:
    if row.method == "full":
        if row.way == EAGER:
            return model, None
        return (bench.compiled_blocks(model) if row.way == BLOCKS else bench.compiled(model, graphs=row.way == GRAPHS)), None
    how = method(row.method, plan, bench.steps, bench.nfc)
    if row.way == TWIN:
        twin = rfc.eager.cached(model, how)
        return twin, twin
    cached = rfc_fx.transform(model, how, config=rfc_fx.Config(hoist=True, regional=bench.regional, granularity=row.granularity))
    cached.prepare(timesteps_of(calls))
    return bench.compiled(cached, graphs=row.way == GRAPHS), cached


def prepare(bench: Bench, entry: PendingVariant, calls: Calls, leading: int) -> None:
    """Make and compile one variant; every path of programs that a generation takes runs in it, so that its CUDA graphs are recorded."""
    start = time.perf_counter()
    call, cache = entry.make()
    if isinstance(cache, rfc_fx.CachedModel):
        with torch.no_grad():
            cache.trace(**calls[0])
            entry.row["transform_s"] = time.perf_counter() - start
            if not entry.on_graphs:
                entry.estimate_inputs = estimate_arguments(cache, calls, leading)
    variant = TimedVariant(entry.name, call, cache)
    entry.first = first_runs(variant, calls, leading, bench.device, counts_bytes=not entry.on_graphs)
    entry.variant = variant
    entry.row |= {"frames": entry.first.frames, "first_runs_s": entry.first.seconds}
