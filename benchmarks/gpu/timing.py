"""Times of a workload: its variants take turns, then each is looked at alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bench import Bench, left, tried
from benchmarks.gpu.entries import PendingVariant, entries, prepare
from benchmarks.gpu.idle import details
from benchmarks.gpu.workloads import LARGE, Timed, built
from benchmarks.latency.compiling import cold, frames
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.record import record
from benchmarks.latency.timing import TimedVariant, figures
from benchmarks.latency.workloads import Calls, Workload, calls_of

MEASURING = 0.35
"""Share of a timing section's time that is kept for measuring; the rest is for compiling."""


def measure(bench: Bench, variants: list[PendingVariant], calls: Calls, until: float) -> int:
    """Rounds of generations in turns, as many as fit; return how many every variant has."""
    done, longest = 0, 0.0
    while done < bench.rounds and left(until) > longest:
        begin = time.perf_counter()
        for entry in variants:
            if entry.variant is None:
                continue
            tried(entry.row, left(until), partial(counted_run, bench, entry, entry.variant, calls))
            if "error" in entry.row:
                entry.variant = None
        done += 1
        longest = time.perf_counter() - begin
    return done


def counted_run(bench: Bench, entry: PendingVariant, variant: TimedVariant, calls: Calls) -> None:
    """One generation that counts; its peak of memory over what was allocated when it began."""
    if not bench.cuda:
        variant.run(calls, bench.device, count=True)
        return
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    variant.run(calls, bench.device, count=True)
    peak = torch.cuda.max_memory_allocated(bench.device)
    entry.row["peak_mib"] = {"all": peak / 2**20, "above_models_and_states": (peak - before) / 2**20}


def timed(bench: Bench, rows: dict[str, Any], until: float, *, name: str) -> None:
    """One workload: compile its variants, let them take turns, then look at each."""
    what: Timed = LARGE[name]
    workload = what.tiny if bench.tiny else what.workload
    begin = time.perf_counter()
    plan = equal_gaps(bench.steps, bench.nfc)
    if (ready := tried(rows, left(until), partial(with_calls, bench, workload, what.samples))) is None:
        return
    model, calls = ready
    rows |= {"what": workload.what, "samples": what.samples, "dtype": "bfloat16", "weights_mib": weights(model) / 2**20}
    variants = entries(bench, model, calls, plan, beside=what.beside)
    rows["variants"] = {entry.name: entry.row for entry in variants}
    compiled_by = until - MEASURING * left(until)
    with cold() if bench.cuda else same():
        for entry in variants:
            tried(entry.row, left(compiled_by), partial(prepare, bench, entry, calls, plan.warmup))
        rows["preparing_s"] = time.perf_counter() - begin
        before = frames()
        rows["rounds"] = measure(bench, variants, calls, until - left(until) / 3)
        rows["graphs_compiled_while_counting"] = frames() - before
        tried(rows, left(until), partial(compare, bench, variants))
        details(bench, variants, calls, until)


def with_calls(bench: Bench, workload: Workload, samples: int) -> tuple[nn.Module, Calls]:
    """A workload's model in bfloat16, and the calls of a generation."""
    model = built(workload, bench.device, torch.bfloat16)
    return model, calls_of(workload, model, samples, bench.steps, bench.device, torch.bfloat16)


@contextmanager
def same() -> Iterator[None]:
    """Caches as they are."""
    yield


def compare(bench: Bench, variants: list[PendingVariant]) -> None:
    """Times into the rows, against compiled full computation where there is one."""
    ran = [entry.variant for entry in variants if entry.variant is not None and entry.variant.generations_ms]
    if any(variant.name == "full, compiled" for variant in ran):
        times = record(ran, bench.steps, bench.nfc)
    else:
        times = {variant.name: {"generation": figures(variant.generations_ms)} for variant in ran}
    for entry in variants:
        entry.row |= times.get(entry.name, {})


def weights(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())
