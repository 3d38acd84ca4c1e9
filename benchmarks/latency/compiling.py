"""What compiling cost and counted: cold caches, frames, and the bytes of the kernels of an estimated step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor import compile_fx, metrics
from torch._inductor.utils import fresh_cache

import rfc_fx
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import Calls
from rfc.phase import ESTIMATE, FULL


@dataclass(frozen=True)
class FirstRuns:
    """What the first steps of a variant cost, and what Inductor counted for the program of an estimated one."""

    seconds: float
    """Compilation and the steps it ran."""
    frames: int
    estimate_bytes: int | None
    """None where ESTIMATE was not compiled alone, or by another backend, or came from a cache."""


def frames() -> int:
    """Graphs compiled in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@contextmanager
def bytes_counted() -> Iterator[None]:
    """Let Inductor count the bytes of what it compiles: it does where it would log them, and for no graph that a cache has."""
    log = compile_fx.inductor_metrics_log
    before = log.level
    log.setLevel(logging.INFO)
    try:
        with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
            yield
    finally:
        log.setLevel(before)


@contextmanager
def cold() -> Iterator[None]:
    """Nothing compiled, nothing cached."""
    torch._dynamo.reset()
    with fresh_cache():
        yield


def first_runs(variant: TimedVariant, calls: Calls, leading: int, device: torch.device, *, counts_bytes: bool = True) -> FirstRuns:
    """Compile a variant: the `leading` full steps, then on to the full step after estimated ones, then that twice without compiling.

    The full step after a discarded estimate is a path of programs of its own, for which CUDA graphs are recorded anew; what is recorded
    at a path's second run is not, once the third has begun. `counts_bytes`: no caches of Inductor's are used then.
    """
    begin, before = time.perf_counter(), frames()
    with bytes_counted() if counts_bytes else nullcontext():
        variant.run(calls[:leading], device, count=False)
        metrics.reset()
        between = frames()
        variant.run(until_full_again(variant.cache, calls), device, count=False)
        estimate = metrics.num_bytes_accessed if frames() == between + 1 else 0
    seconds = time.perf_counter() - begin
    for _ in range(2):
        variant.run(until_full_again(variant.cache, calls), device, count=False)
    variant.first_s = seconds
    return FirstRuns(seconds, frames() - before, estimate or None)


def until_full_again(cache: Any, calls: Calls) -> Iterator[dict[str, torch.Tensor]]:
    """The calls of a generation up to the second one after a full step that follows estimated ones; without a cache three."""
    if cache is None:
        yield from calls[:3]
        return
    more = 2
    for call in calls:
        yield call
        phases = cache.stats.phases
        if ESTIMATE.name in phases and FULL.name in phases[phases.index(ESTIMATE.name) :]:
            more -= 1
            if not more:
                return


def estimate_arguments(cached: rfc_fx.CachedModel, calls: Calls, leading: int) -> list[torch.Tensor]:
    """What an estimated step hands to its program; runs uncompiled, and has to come before the program is compiled."""
    cached.trace(**calls[0])
    inputs: list[torch.Tensor] = []
    hook = cached.programs[ESTIMATE.name].run.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    try:
        with cached.generation():
            for call in calls[: leading + 1]:
                cached(**call)
    finally:
        hook.remove()
    return inputs


def times_ms(function: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each call after three warm-ups: CUDA events there, the host clock elsewhere."""
    for _ in range(3):
        function()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append((time.perf_counter() - start) * 1e3)
        return times
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start_event, end_event in pairs:
        start_event.record()
        function()
        end_event.record()
    torch.cuda.synchronize(device)
    return [float(start_event.elapsed_time(end_event)) for start_event, end_event in pairs]
