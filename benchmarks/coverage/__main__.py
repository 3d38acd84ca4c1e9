"""Coverage: what `rfc_fx.transform` makes of every denoising transformer of diffusers: `python -m benchmarks.coverage`.

Each class is built small (2 blocks of each kind, random weights) and goes through the same checks; ESTIMATE's share of FULL's
FLOPs is counted at the published width, on the meta device where the class can be traced there. No number here is a time.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import torch._dynamo.testing
import typer

from benchmarks.coverage.checks import check
from benchmarks.coverage.engines import fill_engines
from benchmarks.coverage.inductor import fill_in
from benchmarks.coverage.rows import ClassCoverage, markdown, read, write
from benchmarks.coverage.specs import all_specs, in_order


def _check(name: str, meta: bool, compiles: bool, verbose: bool) -> ClassCoverage:
    torch.set_num_threads(1)
    return check(all_specs()[name], meta=meta, compiles=compiles, verbose=verbose)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="classes (default: all)")] = None,
    meta: Annotated[bool, typer.Option("--flops/--no-flops", help="count FLOPs at the published width")] = True,
    compile: Annotated[bool, typer.Option(help="count compiled frames and graph breaks")] = True,
    verbose: Annotated[bool, typer.Option(help="print tracebacks")] = False,
    inductor: Annotated[
        bool, typer.Option("--inductor", help="fill in the column of the real Inductor in the record at --out; hours")
    ] = False,
    engines: Annotated[
        bool, typer.Option("--engines", help="export the classes and fill in the record of engines, cell by cell; hours")
    ] = False,
    variant: Annotated[list[str] | None, typer.Option(help="of --engines: onnx, 'aoti cond', ...; repeatable (default: all)")] = None,
    jobs: Annotated[int, typer.Option(help="processes", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="folder for coverage.json and coverage.md; rows of other classes there are kept")] = None,
) -> None:
    """Check the classes and print what was seen of each."""
    classes = names or list(all_specs())
    if unknown := sorted(set(classes) - set(all_specs())):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(all_specs())}")
    if engines:
        torch.set_num_threads(1)
        fill_engines(names, variant)
        return
    if inductor:
        if out is None:
            raise typer.BadParameter("--inductor adds to a record: pass its folder as --out")
        fill_in(out, names, jobs)
        return
    rows: list[ClassCoverage] = []
    earlier = read(out, same_versions=True) if out is not None and (out / "coverage.json").exists() else []
    others = [row for row in earlier if row.name not in classes]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else nullcontext() as pool:
        work = (_check, classes, repeat(meta), repeat(compile), repeat(verbose))
        for row in pool.map(*work) if pool is not None else map(*work):
            rows.append(row)
            print(f"{row.name}: {'passed' if row.passed else '; '.join(row.errors)}", flush=True)
            if len(classes) == 1:
                print("\n".join(f"{key}: {item}" for key, item in asdict(row).items()))
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                write(out, in_order([*others, *rows]))
    print(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
