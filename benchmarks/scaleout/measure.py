"""Bytes and milliseconds of every program, alone and with the sequence split over the ranks that torchrun has started."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest import mock

import torch
import torch.distributed as dist
import typer
from torch import Tensor

import rfc
import rfc_fx
import rfc_fx.zoo
from benchmarks.files import RESULTS, Record, write_json
from benchmarks.scaleout.digits import split_digits
from benchmarks.scaleout.table import markdown
from rfc_fx.tools.summary_json import versions

METHODS = {"Newton, RCS": rfc.NewtonRCS(tau=0.15), "RFC": rfc.RFC(tau=0.15)}
SAMPLES = 10


def timed_step(model: Any, call: dict[str, Any]) -> tuple[Any, list[tuple[str, float]]]:
    """The output of one step, and its programs in their order with milliseconds."""
    spent: list[tuple[str, float]] = []
    with torch.no_grad():
        step = model.driver.step((), call)
        phases = {program.run.forward: phase for phase, program in model.programs.items()}
        results = None
        while True:
            try:
                run, arguments = step.send(results)
            except StopIteration as done:
                return done.value, spent
            begin = time.perf_counter()
            results = run(*arguments)
            spent.append((phases[run], (time.perf_counter() - begin) * 1e3))


def generation(model: Any, scheduler: Any, steps: int) -> tuple[Tensor, dict[str, list[float]]]:
    """Ten digits with guidance, and the milliseconds of every run of each program."""
    labels = torch.arange(SAMPLES)
    both = torch.cat([labels, torch.full_like(labels, rfc_fx.zoo.NULL_CLASS)])
    scheduler.set_timesteps(steps)
    x = rfc_fx.zoo.digits_noise(list(range(SAMPLES))) * scheduler.init_noise_sigma
    times: dict[str, list[float]] = defaultdict(list)
    with model.generation(timesteps=scheduler.timesteps):
        for t in scheduler.timesteps:
            call = {"hidden_states": torch.cat([x, x]), "timestep": t.expand(len(both)), "class_labels": both}
            output, spent = timed_step(model, call)
            for phase, ms in spent:
                times[phase].append(ms)
            cond, uncond = output.sample.chunk(2)
            x = scheduler.step(uncond + 1.5 * (cond - uncond), t, x).prev_sample
    return x, times


def measured(model: Any, scheduler: Any, steps: int, rounds: int) -> tuple[Record, Tensor]:
    """Medians of every program over some generations, what it sends, and what was decided; and the pictures. The first warms up."""
    all_times: dict[str, list[float]] = defaultdict(list)
    pictures, _ = generation(model, scheduler, steps)
    for _ in range(rounds):
        pictures, times = generation(model, scheduler, steps)
        for phase, each in times.items():
            all_times[phase] += each
    plan = model.plan()
    return {
        "phases": "".join({"FULL": "#", "ESTIMATE": "."}.get(phase, "?") for phase in model.stats.phases),
        "state_bytes": plan.state_bytes,
        "programs": {
            phase: {
                "ms": round(median(each), 3),
                "runs": len(each),
                "collectives": dict(plan.traffic[phase].collectives) if phase in plan.traffic else {},
                "sent_bytes": plan.traffic[phase].sent_bytes if phase in plan.traffic else 0,
            }
            for phase, each in all_times.items()
        },
    }, pictures


def main(
    steps: Annotated[int, typer.Option(min=4, help="of a generation")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="generations that are timed")] = 2,
    out: Annotated[Path, typer.Option(help="file of the record")] = RESULTS / "scaleout" / "scaleout.json",
) -> None:
    """Measure the digits model whole on the first rank alone, then split over all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    transformer, scheduler = rfc_fx.zoo.load_digits()
    with mock.patch.object(torch.accelerator, "device_count", return_value=1):
        parted = split_digits(copy.deepcopy(transformer), ranks)
    record: Record = {"settings": {"ranks": ranks, "steps": steps, "rounds": rounds, "samples": SAMPLES, "guidance": 1.5}, "methods": {}}
    for name, method in METHODS.items():
        whole = measured(rfc_fx.transform(transformer, method), scheduler, steps, rounds) if rank == 0 else None
        dist.barrier()
        split, parts = measured(rfc_fx.transform(parted, method), scheduler, steps, rounds)
        if whole is not None:
            alone, pictures = whole
            record["methods"][name] = {"alone": alone, "split": split, "largest_difference": float((pictures - parts).abs().max())}
    if rank == 0:
        record["versions"] = versions()
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, record)
        typer.echo(markdown(record))
        typer.echo(str(out))
    dist.destroy_process_group()
