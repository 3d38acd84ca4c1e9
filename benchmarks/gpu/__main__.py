"""Checks, then times, on one CUDA device: `python -m benchmarks.gpu`; `--tiny` runs the same sections on the CPU with tiny shapes.

Every variant runs the same steps in full (`nfc` of `steps`, at equal gaps); all take turns in one process, a generation each, after a
warm-up. A step's time is the host clock's with a synchronization after each step; a program's alone, the copy's and the matrix product's
are CUDA events'. Medians with the 10th and 90th percentile; a ratio is a ratio of medians. The idle share is 1 - kernel time / wall time
of a generation with one synchronization, at its end: the kernels' (overlaps counted once) from torch.profiler in a generation of its own.
Bytes per second are those that Inductor counts for the kernels of ESTIMATE, over the program's time; the copy's are read plus written.
A workload begins with empty compiler caches; its variants share them.
The script watches its own clock: what no longer fits is a row that says so, what fails is a row with its error, and the record is
written after every section. Sections of an earlier run that are not run again are kept.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.files import write_json
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import failed, shown
from benchmarks.gpu.sections import SECTIONS, run_section


def main(
    out: Annotated[Path | None, typer.Option(help="folder for gpu.json; with --tiny out/gpu if none is named")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="tiny shapes on the CPU")] = False,
    sections: Annotated[str, typer.Option(help=f"of {', '.join(SECTIONS)}; device always runs")] = ", ".join(SECTIONS),
    seconds: Annotated[float, typer.Option(help="wall time in which all of it has to end", min=1)] = 520,
    rounds: Annotated[int, typer.Option(help="generations of every variant", min=1)] = 5,
    backend: Annotated[str | None, typer.Option(help="of torch.compile; inductor, with --tiny eager")] = None,
    regional: Annotated[bool, typer.Option("--regional", help="transform with regional=True: deep models compile sooner")] = False,
) -> None:
    """Check and time the compiled programs on one CUDA device, and write what was found as JSON."""
    began = time.perf_counter()
    if not tiny and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device; --tiny runs the same sections on the CPU")
    names = dict.fromkeys(["device", *(name.strip() for name in sections.split(",") if name.strip())])
    if unknown := [name for name in names if name not in SECTIONS]:
        raise typer.BadParameter(f"unknown sections {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    bench = Bench(
        device=torch.device("cpu" if tiny else "cuda"),
        tiny=tiny,
        backend=backend or ("eager" if tiny else "inductor"),
        regional=regional,
        steps=10 if tiny else 50,
        nfc=4 if tiny else 14,
        rounds=min(rounds, 2) if tiny else rounds,
        end=began + seconds,
    )
    path = (out or Path("out/gpu" if tiny else "benchmarks/results/gpu")) / "gpu.json"
    earlier = json.loads(path.read_text())["sections"] if path.exists() else {}
    settings = {key: getattr(bench, key) for key in ("tiny", "backend", "regional", "steps", "nfc", "rounds")}
    done: dict[str, dict[str, Any]] = {}
    with torch._inductor.config.patch({"triton.cudagraph_or_error": True}):
        for name in (name for name in SECTIONS if name in names):
            done[name] = {"settings": settings, **run_section(bench, name)}
            write_json(path, {"protocol": __doc__, "seconds": time.perf_counter() - began, "sections": {**earlier, **done}})
            print(f"{time.perf_counter() - began:5.0f} s  {name}: {done[name]['status']} {done[name].get('reason', '')}", flush=True)
    Console(width=150).print(shown(done))
    if wrong := failed(done.get("checks", {})):
        print("checks failed:", wrong)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
