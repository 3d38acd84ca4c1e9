"""One section in this process: `python -m benchmarks.gpu.section NAME FILE`; it gets ready, and begins when it is told its seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import PLAN
from benchmarks.gpu.processes import wait_for_turn
from benchmarks.gpu.sections import device_of, run_section

SOON = 3600.0
"""Seconds for what goes before the turn."""


def bench_of(name: str, *, tiny: bool, backend: str, facts: dict[str, Any]) -> Bench:
    """How that section runs by the plan; its turn may have come already."""
    section = PLAN[name]
    bench = Bench(
        device=device_of(tiny),
        tiny=tiny,
        backend=backend,
        regional=section.regional and not tiny,
        steps=10 if tiny else section.steps,
        nfc=4 if tiny else section.nfc,
        rounds=1 if tiny else section.rounds,
        end=time.perf_counter() + SOON,
        facts=facts,
        full_steps=3 if tiny else section.full_steps,
    )
    return bench


def main(
    name: Annotated[str, typer.Argument(help="of the section")],
    path: Annotated[Path, typer.Argument(help="of its record")],
    tiny: Annotated[bool, typer.Option("--tiny")] = False,
    backend: Annotated[str, typer.Option()] = "inductor",
) -> None:
    """Run one section."""
    bench = bench_of(name, tiny=tiny, backend=backend, facts={})

    def turn() -> None:
        bench.end = time.perf_counter() + wait_for_turn()
        measured = path.with_name("device.json")
        if name != "device" and measured.exists():
            bench.facts = json.loads(measured.read_text())["rows"]

    bench.turn = turn
    with torch._inductor.config.patch({"triton.cudagraph_or_error": True}):
        run_section(bench, name, path)


if __name__ == "__main__":
    typer.run(main)
