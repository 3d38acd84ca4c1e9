"""Time of a FULL and of an ESTIMATE step, eager twin against compiled graph: `python -m benchmarks.latency`.

All variants take turns in one process, a short generation each, after one warm-up generation; a step is timed on the host (with a
synchronization on CUDA) and filed under the phase it took. Medians with the 10th and 90th percentile; a share is a ratio of medians.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import rfc
import rfc.eager
import rfc_fx
from rfc_fx.record import versions
from rfc_fx.zoo import NULL_CLASS, digits_noise, load_digits

STEPS = 12
"""Steps of a timed generation: three full ones to warm up, then estimated and full ones in turn."""

Times = dict[str, list[float]]


def alternating(estimator: rfc.Estimator) -> rfc.Method:
    """A data-driven schedule (PREFIX and its decision are part of every step) that never skips two steps in a row."""
    return rfc.Method(estimator=estimator, schedule=rfc.RCS(tau=float("inf"), warmup=3, max_skip=1))


def inputs(samples: int, step: int) -> dict[str, torch.Tensor]:
    """One call of the digits model, guidance halves in one batch; the latent drifts from step to step."""
    start, drift = digits_noise(list(range(samples))), digits_noise(list(range(samples, 2 * samples)))
    x = start + 0.05 * step * drift
    labels = torch.arange(samples) % NULL_CLASS
    return {
        "hidden_states": torch.cat([x, x]),
        "timestep": torch.full((2 * samples,), 980 - 20 * step),
        "class_labels": torch.cat([labels, torch.full_like(labels, NULL_CLASS)]),
    }


@torch.no_grad()
def generation(call: Any, stats: Any, calls: list[dict[str, torch.Tensor]], device: torch.device) -> Times:
    """Milliseconds of every step after the warm-up, by phase."""
    times: Times = defaultdict(list)
    for i, arguments in enumerate(calls):
        start = time.perf_counter()
        call(**arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = (time.perf_counter() - start) * 1e3
        phase = stats().phases[-1] if stats is not None else "FULL"
        if i >= 3:
            times[phase].append(elapsed)
    return times


def measure(samples: int, rounds: int, device: torch.device) -> dict[str, Times]:
    """Times by variant and phase; the digits model, RFE of order 2."""
    model, _ = load_digits()
    model.to(device)
    method = alternating(rfc.RFE(order=2))
    twin, transformed = rfc.eager.cached(model, method), rfc_fx.transform(model, method=method)
    hoisted = rfc_fx.transform(model, method=method, hoist=True)
    calls = [{name: tensor.to(device) for name, tensor in inputs(samples, step).items()} for step in range(STEPS)]
    hoisted.prepare(torch.stack([call["timestep"][0] for call in calls]))
    variants: dict[str, tuple[Any, Any]] = {
        "model, eager": (model, None),
        "model, compiled": (torch.compile(model, fullgraph=True), None),
        "twin, eager": (twin, lambda: twin.stats),
        "transformed, compiled": (torch.compile(transformed, fullgraph=True), lambda: transformed.stats),
        "transformed, hoisted, compiled": (torch.compile(hoisted, fullgraph=True), lambda: hoisted.stats),
    }
    for call, stats in track(variants.values(), "warm-up and compilation"):
        generation(call, stats, calls[:6], device)
    collected: dict[str, Times] = {name: defaultdict(list) for name in variants}
    for _ in track(range(rounds), "rounds"):
        for name, (call, stats) in variants.items():
            for phase, values in generation(call, stats, calls, device).items():
                collected[name][phase] += values
    return collected


def figures(values: list[float]) -> dict[str, float]:
    """Median and spread in milliseconds."""
    tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
    return {"median_ms": statistics.median(values), "p10_ms": tenths[0], "p90_ms": tenths[-1], "samples": len(values)}


def main(
    samples: Annotated[int, typer.Option(help="samples a batch; guidance doubles it", min=1)] = 40,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    out: Annotated[Path, typer.Option(help="JSON file")] = Path("out/latency-digits.json"),
) -> None:
    """Time the steps of the shipped model and print them as a table."""
    collected = measure(samples, rounds, torch.device(device))
    table = Table("variant", "FULL ms (p10-p90)", "ESTIMATE ms (p10-p90)", "ESTIMATE / FULL", title="digits model, RFE order 2, per step")
    record: dict[str, Any] = {}
    for name, phases in collected.items():
        record[name] = {phase: figures(values) for phase, values in phases.items()}
        cells = [
            f"{row['median_ms']:.1f} ({row['p10_ms']:.1f}-{row['p90_ms']:.1f})" if (row := record[name].get(phase)) else "-"
            for phase in ("FULL", "ESTIMATE")
        ]
        share = record[name]["ESTIMATE"]["median_ms"] / record[name]["FULL"]["median_ms"] if "ESTIMATE" in record[name] else None
        record[name]["estimate_share"] = share
        table.add_row(name, *cells, "-" if share is None else f"{share:.1%}")
    Console().print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"samples": samples, "rounds": rounds, "device": device, "threads": torch.get_num_threads(), "protocol": __doc__}
    out.write_text(json.dumps({"settings": settings, "versions": versions(), "variants": record}, indent=1))


if __name__ == "__main__":
    typer.run(main)
