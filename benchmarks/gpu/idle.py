"""Single variants: how long the device idles in a generation, and ESTIMATE's program alone."""

from __future__ import annotations

import statistics
import time
from functools import partial
from math import prod
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, left, note
from benchmarks.gpu.entries import PendingVariant
from benchmarks.latency.compiling import frames, times_ms
from benchmarks.latency.timing import TimedVariant, figures
from benchmarks.latency.workloads import Calls
from rfc.phase import ESTIMATE
from rfc_fx.tools.variants import opened


@torch.no_grad()
def at_once(variant: TimedVariant, calls: Calls, device: torch.device) -> float:
    """Milliseconds of a generation that is synchronized at its end alone (and where a schedule reads its error)."""
    with opened(variant.cache):
        start = time.perf_counter()
        for arguments in calls:
            variant.call(**arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e3


def kernels_ms(variant: TimedVariant, calls: Calls, device: torch.device) -> tuple[float, float]:
    """Milliseconds in which a kernel, copy or fill of one generation was running, by the profiler; the longest gap, microseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        at_once(variant, calls, device)
    events = profile.profiler.kineto_results.events()  # as recorded: trees of them would take longer than the generation
    ran = [event for event in events if event.device_type().name == "CUDA" and not event.is_user_annotation()]
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in ran)
    return covered(spans) / 1e6, longest_gap(spans) / 1e3


def longest_gap(spans: list[tuple[int, int]]) -> int:
    """The longest time between sorted intervals in which there is none."""
    longest, end = 0, spans[0][1] if spans else 0
    for start, stop in spans:
        longest, end = max(longest, start - end), max(end, stop)
    return longest


def covered(spans: list[tuple[int, int]]) -> int:
    """Length of the union of sorted intervals."""
    total, end = 0, 0
    for start, stop in spans:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def idle(bench: Bench, entry: PendingVariant, calls: Calls) -> dict[str, Any]:
    """A generation at once, and the share of it in which nothing ran on the device."""
    assert entry.variant is not None
    wall = statistics.median(at_once(entry.variant, calls, bench.device) for _ in range(2))
    if not bench.cuda:
        return {"generation_at_once_ms": wall, "idle_share": "needs CUDA"}
    kernels, gap = kernels_ms(entry.variant, calls, bench.device)
    return {"generation_at_once_ms": wall, "kernels_ms": kernels, "idle_share": 1 - kernels / wall, "longest_gap_us": gap}


@torch.no_grad()
def estimate_alone(bench: Bench, entry: PendingVariant) -> dict[str, Any]:
    """ESTIMATE's program by itself: its time, and the bytes that Inductor counts over it."""
    assert entry.variant is not None
    assert entry.first is not None
    reads = state_read(entry.variant.cache)
    before = frames()
    program = bench.compiled(entry.variant.cache.programs[ESTIMATE.name].run)
    taken: dict[str, Any] = figures(times_ms(lambda: program(*entry.estimate_inputs), bench.device, 5 if bench.tiny else 50))
    taken["compiled_anew"] = frames() - before
    taken |= {"state_bytes_read": reads, "state_gb_per_s": reads / taken["median_ms"] / 1e6}
    if (counted := entry.first.estimate_bytes) is not None:
        taken |= {"inductor_bytes": counted, "gb_per_s": counted / taken["median_ms"] / 1e6}
        if "copy" in bench.facts:
            taken["share_of_copy"] = taken["gb_per_s"] / bench.facts["copy"]["gb_per_s"]
    return taken


def state_read(cached: Any) -> int:
    """Bytes of the slots that ESTIMATE reads, each once."""
    slots = cached.compiled.layout.slots
    read = {name for name in cached.programs[ESTIMATE.name].read() if name in slots}
    return sum(prod(slots[name].shape) * slots[name].dtype.itemsize for name in read)


def details(bench: Bench, variants: list[PendingVariant], calls: Calls, until: float) -> None:
    """Idle shares and ESTIMATE alone, where there is time."""
    for entry in variants:
        if entry.variant is None:
            continue
        if entry.estimate_inputs and not entry.on_graphs:
            note(entry.row, "estimate_program", left(until), partial(estimate_alone, bench, entry))
        note(
            entry.row,
            "idle",
            left(until),
            partial(idle, bench, entry, calls if entry.variant.cache is not None else calls[: bench.full_steps]),
        )
        bench.save()
