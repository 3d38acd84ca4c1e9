"""Times of a workload: its variants take turns, then each is looked at alone."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.capturing import captured_once
from benchmarks.gpu.bench import Bench, left, tried
from benchmarks.gpu.entries import PendingVariant, entries, prepare
from benchmarks.gpu.graphs import graph_counts, since
from benchmarks.gpu.idle import details
from benchmarks.gpu.plan import PLAN
from benchmarks.gpu.workloads import LARGE, Timed, built
from benchmarks.latency.compiling import frames
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.record import record
from benchmarks.latency.timing import TimedVariant, figures
from benchmarks.latency.workloads import Calls, Workload, calls_of

MEASURING = 0.25
"""Share of a timing section's time that is kept for measuring; the rest is for compiling."""


def measure(bench: Bench, variants: list[PendingVariant], calls: Calls, until: float) -> int:
    """Rounds of generations in turns, as many as fit; return how many every variant has."""
    done, longest = 0, 0.0
    while done < bench.rounds and left(until) > longest:
        begin = time.perf_counter()
        turn(bench, variants, calls, until)
        done += 1
        longest = time.perf_counter() - begin
        tried({}, left(until), partial(compare, bench, variants))
        bench.save()
    return done


def turn(bench: Bench, variants: list[PendingVariant], calls: Calls, until: float) -> None:
    """A generation of every variant that was made, one after the other; one that fails is not run again."""
    for entry in variants:
        if entry.variant is None:
            continue
        own = calls if entry.variant.cache is not None else calls[: bench.full_steps]
        tried(entry.row, left(until), partial(counted_run, bench, entry, entry.variant, own))
        if "error" in entry.row:
            entry.variant = None


def counted_run(bench: Bench, entry: PendingVariant, variant: TimedVariant, calls: Calls) -> None:
    """One generation that counts; its peak of memory over what was allocated when it began, and CUDA graphs that were recorded in it."""
    before = graph_counts(bench.device)
    variant.run(calls, bench.device, count=True)
    if bench.cuda:
        if variant.peak_bytes is not None:
            entry.row["peak_mib"] = variant.peak_bytes / 2**20
        entry.row["graphs_while_counting"] = since(before, graph_counts(bench.device))


def timed(bench: Bench, rows: dict[str, Any], until: float, *, name: str) -> None:
    """One workload: compile its variants in the planned order, let them take turns, then look at each. Written down as it comes."""
    what: Timed = LARGE[name]
    workload = what.tiny if bench.tiny else what.workload
    begin = time.perf_counter()
    plan = equal_gaps(bench.steps, bench.nfc)
    with captured_once():
        if (ready := tried(rows, left(until), partial(with_calls, bench, workload, what.samples))) is None:
            return
        model, calls = ready
        rows |= {"what": workload.what, "samples": what.samples, "dtype": "bfloat16", "weights_mib": weights(model) / 2**20}
        variants = entries(bench, PLAN[name].rows, model, calls, plan)
        rows["variants"] = {entry.name: entry.row for entry in variants}
        bench.turn()
        compiled_by = until - MEASURING * left(until)
        for entry in variants:
            before = graph_counts(bench.device)
            tried(entry.row, left(compiled_by), partial(prepare, bench, entry, calls, plan.warmup))
            entry.row["graphs_while_compiling"] = since(before, graph_counts(bench.device))
            bench.save()
            turn(bench, [entry], calls, compiled_by)  # a first generation at once: what comes later may not be reached
            tried({}, left(until), partial(compare, bench, variants))
            bench.save()
    rows["preparing_s"] = time.perf_counter() - begin
    before_frames = frames()
    rows["rounds"] = measure(bench, variants, calls, until - left(until) / 3)
    rows["graphs_compiled_while_counting"] = frames() - before_frames
    details(bench, variants, calls, until)


def with_calls(bench: Bench, workload: Workload, samples: int) -> tuple[nn.Module, Calls]:
    """A workload's model in bfloat16, and the calls of a generation, whose timesteps are views of one tensor."""
    model = built(workload, bench.device, torch.bfloat16)
    return model, calls_of(workload, model, samples, bench.steps, bench.device, torch.bfloat16)


def compare(bench: Bench, variants: list[PendingVariant]) -> None:
    """Times into the rows, against the fastest full computation that was compiled, where there is one."""
    ran = [entry.variant for entry in variants if entry.variant is not None and entry.variant.generations_ms]
    for variant in ran:
        if variant.cache is None:  # a part of a generation whose steps are all alike
            variant.generations_ms = [sum(variant.steps_ms["FULL"]) / len(variant.steps_ms["FULL"]) * bench.steps]
    full = [variant for variant in ran if variant.cache is None and not variant.name.endswith("eager")]
    if full:
        times = record(ran, bench.steps, bench.nfc, min(full, key=lambda variant: variant.generations_ms[0]).name)
    else:
        times = {variant.name: {"generation": figures(variant.generations_ms)} for variant in ran}
    for entry in variants:
        entry.row |= times.get(entry.name, {})


def weights(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())
