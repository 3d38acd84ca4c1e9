"""Host time of a step, in place: `python -m benchmarks.host --model dit-s --before <a checkout>`.

The time of a step less that of the programs it runs, in whole generations with the programs at work (so that caches are as a step finds
them). The programs run uncompiled; each is timed from inside, the call of its module counts as the host's. With `before`, another checkout
is measured by the same lines, in processes that take turns. Medians over steps; `cpu` is the time of the thread, which other processes
lengthen less than the clock's.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import rfc
import rfc_fx
from benchmarks.latency.workloads import WORKLOADS, Calls

WARMUP_STEPS = 10
CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}


class Programs:
    """Nanoseconds that programs took since they were last asked for, by clock."""

    def __init__(self, cached: rfc_fx.CachedModel) -> None:
        self.ns = dict.fromkeys(CLOCKS, 0)
        for program in cached.programs.values():
            program.module.forward = self._timed(program.module.forward)

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = {name: clock() for name, clock in CLOCKS.items()}
            results = run(*args)
            for name, clock in CLOCKS.items():
                self.ns[name] += clock() - start[name]
            return results

        return timed

    def take(self) -> dict[str, int]:
        """The sums, which begin anew."""
        taken, self.ns = self.ns, dict.fromkeys(CLOCKS, 0)
        return taken


@torch.no_grad()
def host_ms(cached: rfc_fx.CachedModel, calls: Calls, generations: int) -> dict[str, list[float]]:
    """Milliseconds of every step of some generations outside the programs, by clock."""
    programs = Programs(cached)
    with _opened(cached):
        for call in calls[:WARMUP_STEPS]:
            cached(**call)
    programs.take()
    found: dict[str, list[float]] = {name: [] for name in CLOCKS}
    for _ in range(generations):
        with _opened(cached):
            for step, call in enumerate(calls):
                start = {name: clock() for name, clock in CLOCKS.items()}
                cached(**call)
                spent = {name: clock() - start[name] for name, clock in CLOCKS.items()}
                inside = programs.take()
                for name in CLOCKS if step else ():  # the first step of a generation also compares the model's fingerprint
                    found[name].append((spent[name] - inside[name]) / 1e6)
    return found


def _opened(cached: Any) -> contextlib.AbstractContextManager[Any]:
    """A generation; a checkout that has none resets."""
    if hasattr(cached, "generation"):
        return cached.generation()  # type: ignore[no-any-return]
    cached.reset()
    return contextlib.nullcontext()


def ways(interval: int) -> dict[str, dict[str, Any]]:
    """How the model is transformed, by what the row is called; the last is what `rfc_fx.accelerate` chooses."""
    taylor = rfc.Method(estimator=rfc.Taylor(order=1), schedule=rfc.Every(interval=interval))
    relational = rfc.Method(estimator=rfc.RFE(order=1), schedule=rfc.RCS(tau=0.3))
    listed = rfc.Listed(full_steps=list(range(0, 1000, interval)))
    placed = rfc.Method(estimator=rfc.LogSNR().estimator, schedule=listed, granularity="stack")
    return {
        "Taylor": {"method": taylor},
        "Taylor, hoisted and prepared": {"method": taylor, "hoist": True},
        "RFC": {"method": relational},
        "LogSNR, stack, hoisted and prepared": {"method": placed, "hoist": True},
    }


def transformed(model: Any, call: dict[str, torch.Tensor], method: Any, hoist: bool = False) -> Any:
    """The cached model of this checkout, or of one whose `transform` took every option by itself."""
    transform: Any = rfc_fx.transform
    if "config" not in inspect.signature(transform).parameters:
        return transform(model, call, method=method, hoist=hoist)
    return transform(model, method, example_inputs=call, config=rfc_fx.Config(hoist=hoist))


def measured(model: str, steps: int, generations: int) -> dict[str, dict[str, list[float]]]:
    """Host milliseconds of every step, by way and clock, of the packages on this process's path."""
    torch.set_num_threads(1)
    workload = WORKLOADS[model]
    module = workload.model()
    calls = workload.calls(module, 1, steps)
    found = {}
    for name, options in ways(interval=4).items():
        cached = transformed(module, calls[0], **options)
        if options.get("hoist"):
            cached.prepare(torch.stack([call["timestep"].flatten()[0] for call in calls]))
        found[name] = host_ms(cached, calls, generations)
    return found


def markdown(rows: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """A table of medians and minima, by checkout, way and clock."""
    lines = ["| checkout | way | host ms, median (cpu) | host ms, median (wall) | minimum (wall) |", "|---|---|---|---|---|"]
    for checkout, found in rows.items():
        for way, clocks in found.items():
            cpu, wall = (statistics.median(clocks[name]) for name in ("cpu", "wall"))
            lines.append(f"| {checkout} | {way} | {cpu:.3f} | {wall:.3f} | {min(clocks['wall']):.3f} |")
    return "\n".join(lines)


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(WORKLOADS)}")] = "dit-s",
    steps: Annotated[int, typer.Option(min=12)] = 30,
    generations: Annotated[int, typer.Option(help="of each process", min=1)] = 2,
    rounds: Annotated[int, typer.Option(help="processes of each checkout, in turn", min=1)] = 3,
    before: Annotated[Path | None, typer.Option(help="another checkout of this repository, measured in turn with this one")] = None,
    is_worker: Annotated[bool, typer.Option("--worker", help="measure in this process and print JSON", hidden=True)] = False,
) -> None:
    """Host milliseconds of a step, here and in another checkout."""
    if is_worker:
        print(json.dumps(measured(model, steps, generations)))
        return
    here = Path(__file__).parents[2]
    checkouts = {"before": before, "now": here} if before is not None else {"now": here}
    rows: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in checkouts}
    for _ in range(rounds):
        for name, folder in checkouts.items():
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "export")]), "OMP_NUM_THREADS": "1"}
            options = ["--worker", "--model", model, "--steps", str(steps), "--generations", str(generations)]
            command = [sys.executable, "-c", _WORKER.format(script=str(Path(__file__))), *options]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            for way, clocks in json.loads(done.stdout.splitlines()[-1]).items():
                row = rows[name].setdefault(way, {clock: [] for clock in CLOCKS})
                for clock, values in clocks.items():
                    row[clock] += values
    print(markdown(rows))


_WORKER = "import runpy, sys, typer; sys.argv[0] = 'host'; typer.run(runpy.run_path({script!r})['main'])"
"""Runs this very file with the packages of another checkout."""
