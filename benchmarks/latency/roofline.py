"""Roofline: what each program has to compute and move, against what the machine can."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._inductor import compile_fx, metrics
from torch._inductor.utils import fresh_cache

import rfc_fx
from benchmarks.latency.timing import WARMUP_STEPS
from benchmarks.latency.workloads import Calls
from rfc.phase import ESTIMATE, FULL
from rfc_fx.ir.phase import PREFIX

BYTES_ARE = "bytes that Inductor counts for the kernels of a program (torch._inductor.metrics.num_bytes_accessed), PREFIX included"


COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Bytes of the large copy: more than a cache holds."""


SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the large product."""


REPEATS = 7


@torch.no_grad()
def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Bandwidth of a large copy (bytes read and written per second) and rate of a large product of matrices, both the best of 7."""
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return {
        "bandwidth_bytes_per_s": 2 * source.nbytes / _best_s(partial(target.copy_, source), device),
        "flops_per_s": 2 * side**3 / _best_s(partial(torch.mm, a, b), device),
        "copied_bytes": source.nbytes,
        "product_side": side,
        "bytes_are": BYTES_ARE,
        "flops_are": "of the programs' matrix products and attention (rfc_fx Plan), PREFIX included",
    }


def _best_s(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def programs(cached: rfc_fx.CachedModel, calls: Calls) -> dict[str, dict[str, int]]:
    """FLOPs and bytes of a FULL and of an ESTIMATE step.

    What `prepare` has computed for all steps at once is in neither.
    """
    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = [
        program.run.register_forward_pre_hook(lambda _, arguments, phase=phase: inputs.setdefault(phase, arguments))
        for phase, program in cached.programs.items()
    ]
    with cached.generation():
        for call in calls[:WARMUP_STEPS]:
            cached(**call)
    for hook in hooks:
        hook.remove()
    moved = {
        phase: inductor_bytes(cached.programs[phase].run, inputs[phase]) for phase in (PREFIX, FULL.name, ESTIMATE.name) if phase in inputs
    }
    plan = cached.plan()
    flops = {FULL.name: plan.full_flops - plan.timestep_flops, ESTIMATE.name: plan.estimate_flops - plan.timestep_flops}
    return {phase: {"flops": flops[phase], "bytes": moved[phase] + moved.get(PREFIX, 0)} for phase in flops if phase in moved}


def inductor_bytes(program: Any, inputs: tuple[Any, ...]) -> int:
    """Bytes that a program's kernels read and write, as Inductor counts.

    CompileCounts afresh, for what comes from a cache is not counted; what was compiled before is forgotten.
    """
    log = compile_fx.inductor_metrics_log
    before = log.level
    log.setLevel(logging.INFO)  # Inductor counts where it would log the count
    torch.compiler.reset()
    metrics.reset()
    try:
        with fresh_cache():
            compiled: Any = torch.compile(program, fullgraph=True)
            compiled(*inputs)
    finally:
        log.setLevel(before)
    return int(metrics.num_bytes_accessed)
