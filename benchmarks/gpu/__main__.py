"""Checks, then times, on one CUDA device: `python -m benchmarks.gpu`; `--tiny` runs the same sections on the CPU with tiny shapes.

Each section is a process of its own, which builds and captures its model while the section before it runs, and is ended when its time is
over; rows are written as they come, so that an error of the device, a hang or an end from outside costs what was under way. `--plan` shows
what would run, in order, with the seconds that are expected. All variants make the same number of steps full, at equal gaps (LogSNR at its
own); all take turns in one process, a generation each, after a warm-up in which every path of programs ran; full computation draws a part
of a generation, for its steps are alike. A step's time is the host clock's with a synchronization after each step; a program's alone, the
copy's and the matrix product's are CUDA events'. Medians with the 10th and 90th percentile; a ratio is a ratio of medians, against the
fastest full computation that was compiled. The idle share is 1 - kernel time / wall time of a generation with one synchronization, at its
end: the kernels' (overlaps counted once) from torch.profiler in a generation of its own. Bytes per second are those of the state that
ESTIMATE reads, and those that Inductor counts for its kernels, over the program's time; the copy's are read plus written. All sections
share Inductor's caches. Sections of an earlier run that are not run again are kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.files import write_json
from benchmarks.gpu.plan import FIRST, PLAN, lines
from benchmarks.gpu.processes import GRACE_S, Process
from benchmarks.gpu.record import failed, shown
from benchmarks.gpu.sections import LEAST_S


def main(
    out: Annotated[Path | None, typer.Option(help="folder for gpu.json; with --tiny out/gpu if none is named")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="tiny shapes on the CPU")] = False,
    sections: Annotated[str, typer.Option(help=f"of {', '.join(PLAN)}; device always runs")] = ", ".join(FIRST),
    seconds: Annotated[float, typer.Option(help="wall time in which all of it has to end", min=1)] = 540,
    backend: Annotated[str | None, typer.Option(help="of torch.compile; inductor, with --tiny eager")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="show what would run, and run nothing")] = False,
) -> None:
    """Check and time the compiled programs on one CUDA device, and write what was found as JSON."""
    began = time.perf_counter()
    names = list(dict.fromkeys(["device", *(name.strip() for name in sections.split(",") if name.strip())]))
    if unknown := [name for name in names if name not in PLAN]:
        raise typer.BadParameter(f"unknown sections {', '.join(unknown)}; known: {', '.join(PLAN)}")
    if plan:
        Console(width=150).print(planned(names, seconds))
        return
    if not tiny and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device; --tiny runs the same sections on the CPU, --plan shows what would run")
    folder = out or Path("out/gpu" if tiny else "benchmarks/results/gpu")
    path = folder / "gpu.json"
    earlier = json.loads(path.read_text())["sections"] if path.exists() else {}
    done: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="rfc-gpu-") as parts:
        options = ["--backend", backend or ("eager" if tiny else "inductor"), *(["--tiny"] if tiny else [])]
        patience = PATIENCE if tiny else 1
        for name, why in run_in_turn(names, Path(parts), options, began + patience * seconds, patience):
            done[name] = recorded(Path(parts) / f"{name}.json", why)
            write_json(path, {"protocol": __doc__, "seconds": time.perf_counter() - began, "sections": {**earlier, **done}})
            print(f"{time.perf_counter() - began:5.0f} s  {name}: {done[name]['status']} {done[name].get('reason', '')}", flush=True)
    Console(width=150).print(shown(done))
    if wrong := failed(done.get("checks", {})):
        print("checks failed:", wrong)
        raise typer.Exit(1)


PATIENCE = 30
"""Times the limits of the plan, that a slow CPU may take for the tiny shapes."""


def run_in_turn(names: Sequence[str], parts: Path, options: Sequence[str], end: float, patience: int) -> Iterator[tuple[str, str | None]]:
    """Run the sections one after the other, each ready before its turn; (name, why it did not end well) as they end."""
    with started(names[0], parts, options) as first:
        process = first
        for name, following in zip(names, [*names[1:], None], strict=True):
            seconds = min(patience * PLAN[name].limit_s, end - time.perf_counter() - GRACE_S)
            behind = None if following is None else begin(following, parts, options)
            try:
                if seconds < LEAST_S:
                    process.end()
                    yield name, f"{max(0.0, seconds):.0f} s left, {LEAST_S:.0f} s needed"
                else:
                    yield name, process.run(seconds)
            except BaseException:
                if behind is not None:
                    behind.end()
                raise
            if behind is not None:
                process = behind


@contextmanager
def started(name: str, parts: Path, options: Sequence[str]) -> Iterator[Process]:
    """The process of the first section; it has ended afterwards."""
    process = begin(name, parts, options)
    try:
        yield process
    finally:
        process.end()


def begin(name: str, parts: Path, options: Sequence[str]) -> Process:
    """Start the process of a section."""
    return Process([sys.executable, "-m", "benchmarks.gpu.section", name, str(parts / f"{name}.json"), *options])


def recorded(path: Path, why: str | None) -> dict[str, Any]:
    """What a section has written, and what became of it."""
    if not path.exists():
        return {"status": "skipped" if why is not None and "needed" in why else "failed", "reason": why or "it wrote nothing"}
    section: dict[str, Any] = json.loads(path.read_text())
    return section if why is None else section | {"status": "failed", "reason": why}


def planned(names: Sequence[str], seconds: float) -> Table:
    """What would run."""
    table = Table("section", "variant", "begins, s", "expected, s", "at most, s", box=None)
    for line in lines(names, seconds):
        limit = f"{line.limit_s:.0f}" if not line.what else ""
        table.add_row(line.section if not line.what else "", line.what, f"{line.begins_s:.0f}", f"{line.expected_s:.0f}", limit)
    return table


if __name__ == "__main__":
    typer.run(main)
