"""Rivals on the device: other libraries' caches, compiled, at the same number of full steps; those whose wheels are here."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, left, tried
from benchmarks.gpu.entries import PendingVariant
from benchmarks.gpu.plan import COMPILED
from benchmarks.gpu.timing import compare, measure, turn, weights, with_calls
from benchmarks.gpu.workloads import LARGE
from benchmarks.latency.methods import equal_gaps, full_steps
from benchmarks.latency.rivals.rival import Rival
from benchmarks.latency.rivals.table import RECOMPILE_LIMIT, rivals
from benchmarks.latency.timing import TimedVariant, keep_all_compilation_metrics
from benchmarks.latency.workloads import Calls


def timed_rivals(bench: Bench, rows: dict[str, Any], until: float) -> None:
    """Full computation and every rival, compiled: each warmed up and run once, then all in turns; then what each really computed."""
    what = LARGE["rivals"]
    workload = what.tiny if bench.tiny else what.workload
    planned = full_steps(equal_gaps(bench.steps, bench.nfc), bench.steps)
    keep_all_compilation_metrics()
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
        if (ready := tried(rows, left(until), partial(with_calls, bench, workload, what.samples))) is None:
            return
        model, calls = ready
        made, refused = rivals(model, calls, planned, ways=("compiled",), backend=bench.backend)
        made.insert(0, TimedVariant(f"full, {COMPILED}", bench.compiled(model)))
        entries = [PendingVariant(variant.name, partial(_ready, variant)) for variant in made]
        rows |= {"what": workload.what, "samples": what.samples, "dtype": "bfloat16", "weights_mib": weights(model) / 2**20}
        rows |= {"full_steps": planned, "refused": refused, "variants": {entry.name: entry.row for entry in entries}}
        bench.turn()
        for entry in entries:
            tried(entry.row, left(until), partial(_warmed_up, bench, entry, calls))
            turn(bench, [entry], calls, until)
            compare(bench, entries)
            bench.save()
        rows["rounds"] = measure(bench, entries, calls, until)
        for entry in entries:
            tried(entry.row, left(until), partial(_judged, entry, planned, calls))


def _ready(variant: TimedVariant) -> tuple[Any, Any]:
    return variant.call, variant.cache


def _warmed_up(bench: Bench, entry: PendingVariant, calls: Calls) -> None:
    variant = TimedVariant(entry.name, *entry.make())
    variant.warm_up(calls, bench.device)
    entry.variant = variant


def _judged(entry: PendingVariant, planned: list[int], calls: Calls) -> None:
    """Note where it computed other steps in full than it was asked to, or than its own record says."""
    if entry.variant is not None and isinstance(entry.variant.cache, Rival):
        entry.variant.audit(calls)
        entry.row["notes"] = entry.variant.cache.verdict(planned, len(calls))
