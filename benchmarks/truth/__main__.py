"""Nearest to what a model would draw with unlimited time: `python -m benchmarks.truth digits --part granularity --groups "0 1 2"`.

Rows that the record has are kept, so that a run can be stopped, and groups of seeds added.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.capturing import captured_once
from benchmarks.files import RESULTS, read_json, write_json
from benchmarks.quality.similarity import relative_l2
from benchmarks.truth.converged import STEPS
from benchmarks.truth.lab import Lab, Sampler
from benchmarks.truth.models import MODELS
from benchmarks.truth.plans import PARTS
from benchmarks.truth.rows import CHOOSE, PLAIN, Row, Rows

CONVERGED = "converged"
"""The part that says how far twice the steps move the converged solution."""


def main(
    model: Annotated[str, typer.Argument(help=f"one of {', '.join(MODELS)}")],
    part: Annotated[str, typer.Option(help=f"one of {', '.join((*PARTS, CONVERGED))}")] = "granularity",
    groups: Annotated[str, typer.Option(help="groups of seeds: choose, 0, 1, ...; separated by spaces")] = "0",
    size: Annotated[int, typer.Option(help="samples of a group", min=2)] = 22,
    truth: Annotated[bool, typer.Option("--truth/--no-truth", help="errors to the converged solution too")] = True,
    out: Annotated[Path, typer.Option(help="folder of the records")] = RESULTS / "truth",
) -> None:
    """Measure the cells of a part that the record does not have."""
    if model not in MODELS or part not in (*PARTS, CONVERGED):
        raise typer.BadParameter(f"{model} {part}: expected one of {', '.join(MODELS)}, and one of {', '.join((*PARTS, CONVERGED))}")
    torch.set_num_threads(1)
    if part == CONVERGED:
        once, twice = (Lab(model, size).truth(CHOOSE, steps) for steps in (STEPS, 2 * STEPS))
        moved = statistics.geometric_mean(relative_l2(once, twice).tolist())
        record = read_json(out / f"{CONVERGED}.json") if (out / f"{CONVERGED}.json").exists() else {}
        write_json(out / f"{CONVERGED}.json", record | {model: {"steps": STEPS, "samples": size, "moved_by_twice_the_steps": moved}})
        return
    rows = Rows(out / f"{model}.jsonl")
    lab: Lab | None = None
    with captured_once():
        for cell in PARTS[part](model, rows):
            for group in groups.split():
                if (cell, group) in rows.rows:
                    continue
                lab = lab or Lab(model, size)
                sampler = Sampler(cell.solver, cell.spacing, cell.steps)
                if cell.method == PLAIN:
                    errors = lab.plain(group, sampler)
                else:
                    errors = lab.cached(group, sampler, lab.method(cell.method, sampler, cell.n), cell.n, to_truth=truth)
                rows.add(Row(cell=cell, group=group, truth=tuple(errors.truth), full=tuple(errors.full)))
                typer.echo(f"{group} {cell} {_mean(errors.truth)} {_mean(errors.full)}")


def _mean(errors: list[float]) -> str:
    return f"{torch.tensor(errors).log().mean().exp():.4f}" if errors else "-"


if __name__ == "__main__":
    typer.run(main)
