"""Rivals on the device: other libraries' caches, compiled, at the same number of full steps; those whose wheels are here."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench, left, tried
from benchmarks.gpu.timing import weights, with_calls
from benchmarks.gpu.workloads import LARGE
from benchmarks.latency.methods import equal_gaps, full_steps
from benchmarks.latency.rivals.table import rivals
from benchmarks.latency.timing import TimedVariant, figures


def timed_rivals(bench: Bench, rows: dict[str, Any], until: float) -> None:
    """Every rival, compiled: its warm-up, then generations that count, one rival after the other."""
    what = LARGE["rivals"]
    model, calls = with_calls(bench, what.tiny if bench.tiny else what.workload, what.samples)
    plan = equal_gaps(bench.steps, bench.nfc)
    ways, refused = rivals(model, calls, full_steps(plan, bench.steps))
    rows |= {"what": what.workload.what, "weights_mib": weights(model) / 2**20, "refused": refused}
    variants: dict[str, Any] = {variant.name: {} for variant in ways if variant.compiles}
    rows["variants"] = variants
    bench.turn()
    for variant in ways:
        if variant.compiles:
            tried(variants[variant.name], left(until), partial(_run, bench, variant, variants[variant.name], calls))
            bench.save()


def _run(bench: Bench, variant: TimedVariant, row: dict[str, Any], calls: Any) -> None:
    variant.warm_up(calls, bench.device)
    for _ in range(bench.rounds):
        variant.run(calls, bench.device, count=True)
        row |= {"generation": figures(variant.generations_ms), "nfc": variant.cache.stats.nfc, "notes": variant.notes}
        row |= {phase: figures(values) for phase, values in variant.steps_ms.items() if values}
