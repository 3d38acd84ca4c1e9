"""Tables of Frechet distances to real pictures beside the errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.quality.workloads import WORKLOADS
from benchmarks.tables import table
from benchmarks.truth.contenders import ALL_STEPS, LOG_SNR, PLAIN_STEPS
from benchmarks.truth.distances import CONVERGED, DATA, IN_FULL, REAL, RECORD, Distance, Distances
from benchmarks.truth.lab import Sampler
from benchmarks.truth.plans import BUDGETS
from benchmarks.truth.tables import NOTHING, named


def figures(folder: Path) -> dict[str, Any]:
    """What the page of results is told of the distances in a folder's record."""
    rows = Distances(folder / RECORD).rows
    return {
        "distance_data": "; ".join(f"{model}: {WORKLOADS[DATA[model]].real_is}" for model in _models(rows)),
        "distance_table": distance_table(rows),
        "distance_budgets": budget_table(rows),
        "distances_beyond": sum(row.above is not None and not row.above[1] <= 0 <= row.above[2] for row in rows),
        "distances_compared": sum(row.above is not None for row in rows),
    }


def distance_table(rows: list[Distance]) -> str:
    """Of the converged solution, as many real pictures, and the users' sampler in full."""
    lines = []
    for model in _models(rows):
        own = {row.contender: row for row in rows if row.model == model}
        users = own.get(ALL_STEPS)
        lines.append(
            [
                model,
                str(own[CONVERGED].samples),
                f"{own[REAL].frechet:.3g}",
                f"{own[CONVERGED].frechet:.3g}",
                NOTHING if users is None else f"{users.frechet:.3g}",
                _above(users),
                _error(users, lambda row: row.truth),
            ]
        )
    heads = ["model", "samples", "distance, real pictures", "converged solution", "users' sampler", "above the solution's", "error to it"]
    return table(heads, lines)


def budget_table(rows: list[Distance]) -> str:
    """Of n plain steps, LogSNR with n full steps, and LogSNR's sampler in full: distances above the converged solution's, and errors."""
    lines = []
    for model in _models(rows):
        own = [row for row in rows if row.model == model and row.cell is not None]
        for n in BUDGETS:
            at_n = {row.contender: row for row in own if row.cell is not None and row.cell.n == n}
            plain, ours = at_n.get(PLAIN_STEPS), at_n.get(LOG_SNR)
            if ours is None or ours.cell is None:
                continue
            sampler = Sampler(ours.cell.solver, ours.cell.spacing, ours.cell.steps)
            in_full = [row for row in own if row.contender == IN_FULL and row.cell and Sampler(*_parts(row)) == sampler]
            whole = in_full[0] if in_full else None
            lines.append(
                [
                    model,
                    str(n),
                    _error(plain, lambda row: row.truth),
                    _above(plain),
                    named(sampler, model),
                    _error(ours, lambda row: row.truth),
                    _error(ours, lambda row: row.full),
                    _above(ours),
                    _error(whole, lambda row: row.truth),
                    _above(whole),
                ]
            )
    heads = [
        "model",
        "n",
        "plain steps, error to the truth",
        "distance above",
        "LogSNR's sampler",
        "LogSNR, error to the truth",
        "to its sampler in full",
        "distance above",
        "in full, error to the truth",
        "distance above",
    ]
    return table(heads, lines)


def _models(rows: list[Distance]) -> list[str]:
    return [model for model in DATA if any((row.model, row.contender) == (model, CONVERGED) for row in rows)]


def _parts(row: Distance) -> tuple[str, str, int]:
    assert row.cell is not None
    return row.cell.solver, row.cell.spacing, row.cell.steps


def _above(row: Distance | None) -> str:
    return NOTHING if row is None or row.above is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*row.above)


def _error(row: Distance | None, of: Callable[[Distance], float | None]) -> str:
    return NOTHING if row is None or (error := of(row)) is None else f"{error:.4f}"
