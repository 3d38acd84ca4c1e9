"""Tables of the page of results that are made from the rows of the converged solutions' laboratory alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.files import read_json
from benchmarks.quality.bootstrap import Ratio, ratio_of_geometric_means
from benchmarks.tables import table
from benchmarks.truth.contenders import ALL_STEPS, LOG_SNR, PLAIN_STEPS, TUNED, contenders
from benchmarks.truth.converged import STEPS
from benchmarks.truth.fits import FITTED
from benchmarks.truth.lab import OWN, Sampler
from benchmarks.truth.models import MODELS
from benchmarks.truth.passes import INTERVAL, SHIFTS, cell_of, record_of
from benchmarks.truth.plans import BUDGETS, FLOWS, GRANULARITIES, RULES, USERS, own_rule, trained_at
from benchmarks.truth.rows import Cell, Rows
from benchmarks.truth.solvers import SOLVERS

NOTHING = "-"

Records = Mapping[str, Rows]


def read(folder: Path) -> dict[str, Rows]:
    """The rows of every model with a record."""
    return {name: Rows(folder / f"{name}.jsonl") for name in MODELS if (folder / f"{name}.jsonl").exists()}


def figures(folder: Path) -> dict[str, Any]:
    """What the page of results is told of the records in a folder."""
    records = read(folder)
    return {
        "truth_steps": STEPS,
        "truth_moved": {name: f"{of['moved_by_twice_the_steps']:.4f}" for name, of in read_json(folder / "converged.json").items()},
        "truth_models": "; ".join(f"{name}, {MODELS[name].what}" for name in records),
        "truth_solvers": ", ".join(SOLVERS),
        "truth_table": truth_table(records),
        "truth_granularity": granularity_table(records),
        "truth_stack": over_module(records, "stack"),
        "truth_output": over_module(records, "output"),
        "truth_prediction": over_module(records, "prediction"),
        "truth_methods": methods_table(records),
        "truth_fitted": fitted_table(records),
        "truth_passes": passes_table({name: Rows(path) for name in FLOWS if (path := record_of(folder, name)).exists()}),
    }


def ratio(rows: Rows, a: Cell, b: Cell, kind: str) -> Ratio | None:
    """Errors of a over those of b on the same seeds, with the paired bootstrap interval; None where no group has both."""
    both = rows.judged_groups(a, b)
    errors = [torch.tensor(rows.errors(cell, both, kind)) for cell in (a, b)]
    return ratio_of_geometric_means(*errors) if all(map(len, errors)) else None


def named(sampler: Sampler, model: str) -> str:
    """A sampler in words."""
    solver = sampler.solver
    if solver == OWN:
        solver = "FlowMatchEuler" if MODELS[model].is_flow else "DDIM"
    return ", ".join(part for part in (solver, sampler.spacing, f"{sampler.steps} steps") if part)


def granularity_table(records: Records) -> str:
    """LogSNR's error to full computation, by granularity, at the samplers that users have."""
    rows = []
    for model, sampler, n in _users(records):
        by = {grain: _cell(sampler, n, f"LogSNR by angle, {grain}") for grain in GRANULARITIES}
        groups = records[model].judged_groups(by["module"])
        error = records[model].geometric_mean(by["module"], groups, "full")
        if error is None:
            continue
        samples = len(records[model].errors(by["module"], groups, "full"))
        ratios = [_interval(ratio(records[model], by[grain], by["module"], "full")) for grain in GRANULARITIES[1:]]
        rows.append([model, named(sampler, model), str(n), str(samples), f"{error:.4f}", *ratios])
    return table(["model", "sampler", "NFC", "samples", "error, module", *(f"{grain} / module" for grain in GRANULARITIES[1:])], rows)


def over_module(records: Records, grain: Literal["stack", "output", "prediction"]) -> list[float]:
    """LogSNR's error by a granularity over that by modules, at every sampler and budget with both."""
    own, module = f"LogSNR by angle, {grain}", "LogSNR by angle, module"
    ratios = [ratio(records[model], _cell(sampler, n, own), _cell(sampler, n, module), "full") for model, sampler, n in _users(records)]
    return [of.value for of in ratios if of is not None]


def methods_table(records: Records) -> str:
    """Errors to full computation against TaylorSeer's better order, at the samplers that users have."""
    names = ("FORA", "Chebyshev", "LogSNR by angle, module", *RULES)
    rows = []
    for model, sampler, n in _users(records):
        taylor = [_cell(sampler, n, f"TaylorSeer m={m}") for m in (1, 2)]
        groups = records[model].judged_groups(*taylor)
        if not groups:
            continue
        best = min(taylor, key=lambda cell: records[model].geometric_mean(cell, groups, "full") or 0.0)
        error = records[model].geometric_mean(best, groups, "full")
        ratios = [_interval(ratio(records[model], _cell(sampler, n, name), best, "full")) for name in names]
        rows.append([model, named(sampler, model), str(n), f"{error:.4f}", *ratios])
    return table(["model", "sampler", "NFC", "error, TaylorSeer", *names], rows)


def fitted_table(records: Records) -> str:
    """Linear predictions against LogSNR, at the samplers that users have."""
    rows = []
    for model, sampler, n in _users(records):
        own = _cell(sampler, n, own_rule(model))
        ratios = [ratio(records[model], _cell(sampler, n, name), own, "full") for name in FITTED]
        if any(ratios):
            rows.append([model, named(sampler, model), str(n), *map(_interval, ratios)])
    return table(["model", "sampler", "NFC", *FITTED], rows)


def passes_table(records: Records) -> str:
    """Full steps of their own for calls with and without a condition over as many for both: guided everywhere, and within the interval."""
    rows = []
    for model, sampler, n in _users(records):
        row = [model, named(sampler, model), str(n)]
        for within in (False, True):
            both, *others = (cell_of(sampler, n, shift, within=within) for shift in (0, *(shift for shift in SHIFTS if shift)))
            error = records[model].geometric_mean(both, records[model].judged_groups(both), "full")
            row += [NOTHING if error is None else f"{error:.4f}"]
            row += [_interval(ratio(records[model], cell, both, "full")) for cell in others]
        rows.append(row)
    heads = [f"n{shift:+d} / n{-shift:+d}" for shift in SHIFTS if shift]
    return table(["model", "sampler", "n", "error", *heads, f"error, guided within {INTERVAL:g}", *heads], rows)


def truth_table(records: Records) -> str:
    """With n evaluations, the error to the converged solution: solvers at their best, LogSNR at its best, the users' sampler in full."""
    lines = []
    for model, rows in records.items():
        for n in BUDGETS:
            if (cells := contenders(model, rows, n)) is None:
                continue
            best, ours, whole = (cells[name] for name in (PLAIN_STEPS, LOG_SNR, ALL_STEPS))
            groups = rows.judged_groups(best, ours, whole)
            errors = {cell: rows.geometric_mean(cell, groups, "truth") or 0.0 for cell in (best, ours, whole)}
            plain = " ".join((best.solver, best.spacing))
            lines.append(
                [
                    model,
                    str(n),
                    str(len(rows.errors(ours, groups, "truth"))),
                    f"{errors[best]:.4f} {plain}",
                    f"{errors[ours]:.4f} of {ours.steps}, {ours.spacing}",
                    f"{rows.geometric_mean(ours, groups, 'full') or 0.0:.4f}",
                    _interval(ratio(rows, ours, best, "truth")),
                    *(_interval(ratio(rows, cells[name], best, "truth")) if name in cells else NOTHING for name in TUNED),
                    _interval(ratio(rows, trained_at(n), best, "truth")),
                    f"{errors[whole]:.4f} {named(Sampler(whole.solver, whole.spacing, whole.steps), model)}",
                    _interval(ratio(rows, ours, whole, "truth")),
                ]
            )
    heads = [
        "model",
        "n",
        "samples",
        "best of n plain steps",
        "LogSNR, n full",
        "to its sampler in full",
        "ratio",
        "ratio, fitted",
        "ratio, refined",
        "ratio, trained solver",
        "users' sampler, all steps",
        "ratio to it",
    ]
    return table(heads, lines)


def _users(records: Records) -> Iterator[tuple[str, Sampler, int]]:
    for model in records:
        for sampler, budgets in USERS[model].items():
            yield from ((model, sampler, n) for n in budgets)


def _cell(sampler: Sampler, n: int, method: str) -> Cell:
    return Cell(solver=sampler.solver, spacing=sampler.spacing, steps=sampler.steps, n=n, method=method)


def _interval(value: Ratio | None) -> str:
    return NOTHING if value is None else "{:.2f} ({:.2f}-{:.2f})".format(*value)
