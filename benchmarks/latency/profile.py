"""Where the time of an estimated step goes: `python -m benchmarks.profile --model dit-s`.

Steps are listed beforehand and modulation is prepared (fixed steps, hoisted), so an ESTIMATE step is one program. Its wall time is the
median of generations without a profiler; its kernels' times are medians of the same steps under `torch.profiler`, with Inductor's kernels
named (`cpp.enable_kernel_profile`). The host is what is left. The floor is the time that the program's bytes take at the bandwidth of a
large copy in the same process. On CUDA the kernels' times are the device's.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch._inductor.utils import fresh_cache
from torch.profiler import ProfilerActivity, profile

import rfc
import rfc_fx
from benchmarks.files import write_json, write_text
from benchmarks.latency import roofline
from benchmarks.latency.methods import ESTIMATORS, equal_gaps, full_steps
from benchmarks.latency.options import checked
from benchmarks.latency.workloads import WORKLOADS, Calls, calls_of, timesteps_of
from rfc.phase import ESTIMATE
from rfc_fx.tools.summary_json import versions

SMALL = 0.02
"""Kernels below this share of a step are added up."""


LONG = 40
"""Characters of a kernel's name in the table; the record has all."""


def prepared(model: Any, estimator: rfc.Estimator, calls: Calls, nfc: int) -> rfc_fx.CachedModel:
    """The model with listed steps and prepared modulation."""
    steps = full_steps(equal_gaps(len(calls), nfc), len(calls))
    method = rfc.Method(estimator=estimator, schedule=rfc.Listed(full_steps=steps))
    cached = rfc_fx.transform(model, method, config=rfc_fx.Config(hoist=True))
    cached.prepare(timesteps_of(calls))
    return cached


@torch.no_grad()
def measure(model: Any, estimator: rfc.Estimator, calls: Calls, nfc: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of an ESTIMATE step and of its kernels."""
    cached = prepared(model, estimator, calls, nfc)
    compiled = torch.compile(cached, fullgraph=True)
    device = next(model.parameters()).device
    estimated = [step not in set(cached.method.schedule.full_steps) for step in range(len(calls))]  # type: ignore[attr-defined]

    def run(call: dict[str, torch.Tensor]) -> float:
        _wait(device)
        start = time.perf_counter()
        compiled(**call)
        _wait(device)
        return (time.perf_counter() - start) * 1e3

    with cached.generation():
        for call in calls[:8]:
            run(call)
    walls: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        with cached.generation():
            for call, skips in zip(calls, estimated, strict=True):
                walls[skips].append(run(call))
    kernels: dict[str, list[float]] = defaultdict(list)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with cached.generation():
        for call, skips in zip(calls, estimated, strict=True):
            if not skips:
                compiled(**call)
                continue
            with profile(activities=kinds) as profiled:
                run(call)
            for name, ms in _kernels(profiled, device).items():
                kernels[name].append(ms)
    moved = roofline.programs(cached, calls)[ESTIMATE.name]["bytes"]
    wall, full = statistics.median(walls[True]), statistics.median(walls[False])
    times = {name: statistics.median(values) for name, values in kernels.items()}
    return {
        "estimate_ms": wall,
        "full_ms": full,
        "kernels_ms": dict(sorted(times.items(), key=lambda item: -item[1])),
        "host_ms": wall - sum(times.values()),
        "bytes": moved,
    }


def _kernels(profiled: Any, device: torch.device) -> dict[str, float]:
    """Milliseconds by kernel; of nested operations the innermost counts."""
    times: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        is_kernel = device.type == "cuda" or "cpp_fused" in event.key or event.key.startswith(("aten::", "mkldnn::", "mkl::"))
        if own and is_kernel:
            times[event.key] += own / 1e3
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(kernel: str) -> str:
    """A kernel's name without its graph's number, and not much of what Inductor fused."""
    name = re.sub(r"^graph_\d+_", "", kernel)
    return name if len(name) <= LONG else f"{name[:LONG]}..."


def markdown(record: dict[str, Any]) -> str:
    """The parts of a step, largest first."""
    settings = record["settings"]
    bandwidth = settings["machine"]["bandwidth_bytes_per_s"]
    lines = [
        f"{settings['what']}; {settings['samples']} sample{'s' if settings['samples'] > 1 else ''}, {settings['device']} "
        f"({settings['threads']} threads), {settings['dtype']}, torch {settings['versions']['torch']}; large copy "
        f"{bandwidth / 1e9:.1f} GB/s",
        "",
        "| method | ESTIMATE ms | of its FULL | MB moved | floor ms | parts, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in record["methods"].items():
        small = sum(ms for ms in row["kernels_ms"].values() if ms < SMALL * row["estimate_ms"])
        parts = [f"`{_short(kernel)}` {ms:.2f}" for kernel, ms in row["kernels_ms"].items() if ms >= SMALL * row["estimate_ms"]]
        parts += [f"other kernels {small:.2f}", f"host {row['host_ms']:.2f}"]
        share, floor = row["estimate_ms"] / row["full_ms"], row["bytes"] / bandwidth * 1e3
        lines.append(f"| {name} | {row['estimate_ms']:.2f} | {share:.1%} | {row['bytes'] / 1e6:.1f} | {floor:.2f} | {'; '.join(parts)} |")
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(WORKLOADS)}")] = "dit-s",
    methods: Annotated[str, typer.Option(help=f"of {'; '.join(ESTIMATORS)}; separated by semicolons")] = "Taylor m=1; RFE m=1",
    samples: Annotated[int, typer.Option(help="samples a batch; guidance doubles it", min=1)] = 1,
    steps: Annotated[int, typer.Option(min=8)] = 50,
    nfc: Annotated[int, typer.Option(help="steps computed in full", min=3)] = 14,
    rounds: Annotated[int, typer.Option(help="generations that are timed", min=1)] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    out: Annotated[Path, typer.Option(help="folder for MODEL-SAMPLES.json and .md")] = Path("out/profile"),
) -> None:
    """Say where the time of an estimated step goes, kernel by kernel."""
    path = out / f"{model}-{samples}.json"
    names, precision, where = checked(model, methods, dtype, device, ESTIMATORS)
    workload = WORKLOADS[model]
    net = workload.model().to(where, precision)
    calls = calls_of(workload, net, samples, steps, where, precision)
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}), fresh_cache():
        rows = {name: measure(net, ESTIMATORS[name], calls, nfc, rounds) for name in names}
    settings = {
        "model": model,
        "what": workload.what,
        "samples": samples,
        "steps": steps,
        "nfc": nfc,
        "rounds": rounds,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "machine": roofline.machine(where, precision),
        "versions": versions(),
        "protocol": __doc__,
    }
    record = {"settings": settings, "methods": rows}
    write_json(path, record)
    write_text(path.with_suffix(".md"), markdown(record))
    typer.echo(markdown(record))
