"""README's tables of the quality laboratory, made from its records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path

import typer

from benchmarks.files import Record
from benchmarks.quality.cells import MAIN_KINDS, cells_at, interval, is_at_budget, kind
from benchmarks.quality.methods import BASELINES, METHODS, PUBLISHED_RFC
from benchmarks.readme import between_marks
from benchmarks.tables import table

SAMPLER, BUDGETS = "ddim-50", (14, 8)
"""Of the main table."""


OURS = "LogSNR"


AT_EVERY_BUDGET = (*PUBLISHED_RFC, "Chebyshev", OURS)
"""The rows of the second table, beside the best of the other published methods."""


NOTHING = "-"


def in_readme(text: str, out: Path) -> str:
    """README with the tables of a folder's records between its marks; raises BadParameter when it has none."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    if not records:
        raise typer.BadParameter(f"no record (MODEL.json) in {out}")
    return between_marks(text, "quality", f"{_main(records)}\n\nAt every budget, the same ratio:\n\n{_budgets(records)}\n")


def _main(records: Mapping[str, Record]) -> str:
    """Methods by models and budgets with intervals; bold: the smallest of a column."""
    columns = [(record, budget) for record in records.values() for budget in BUDGETS]
    names = [name for name, entry in METHODS.items() if entry.kind in MAIN_KINDS and name not in BASELINES]
    names = [name for name in names if any(_ratio(record, SAMPLER, budget, name) for record, budget in columns)]
    least = [min(names, key=lambda name: _ranked(record, budget, name), default=None) for record, budget in columns]
    rows = []
    for name in names:
        told = [_with_interval(record, budget, name) for record, budget in columns]
        told = [f"**{text}**" if name == best else text for text, best in zip(told, least, strict=True)]
        rows.append([name, *told, *(" / ".join(_flops(record, budget, name) for budget in BUDGETS) for record in records.values())])
    heads = [f"{model}, NFC {budget}" for model in records for budget in BUDGETS]
    return table(["method", *heads, *(f"% of the FLOPs, {model}" for model in records)], rows)


def _budgets(records: Mapping[str, Record]) -> str:
    """Methods by sampler and budget, and what ours has of the better RFC's error; bold: surely below 1."""
    samplers = {name: sampler["what"] for record in records.values() for name, sampler in record["settings"]["samplers"].items()}
    places = dict.fromkeys(
        (sampler, int(budget)) for sampler in samplers for record in records.values() for budget in record["ratios"].get(sampler, ())
    )
    rows = []
    for model, record in records.items():
        for name in AT_EVERY_BUDGET:
            found = [_ratio(record, sampler, budget, name) for sampler, budget in places]
            rows.append([f"{model}: {name}", *(NOTHING if ratio is None else f"{ratio[0]:.2f}" for ratio in found)])
        rows.append([f"{model}: best of the other published", *(_best_published(record, sampler, budget) for sampler, budget in places)])
        found = [_ratio(record, sampler, budget, OURS, "rfc") for sampler, budget in places]
        told = (NOTHING if ratio is None else f"**{ratio[0]:.2f}**" if ratio[2] < 1 else f"{ratio[0]:.2f}" for ratio in found)
        rows.append([f"{model}: {OURS} against the better RFC", *told])
    return table(["", *(f"{samplers[sampler]}, {budget}" for sampler, budget in places)], rows)


def _ratio(record: Record, sampler: str, budget: int, name: str, against: str = "taylorseer") -> list[float] | None:
    """[ratio, low, high] to the better order of TaylorSeer, or of RFC."""
    methods: Record = record["ratios"].get(sampler, {}).get(str(budget), {}).get("methods", {})
    found: list[float] | None = methods.get(name, {}).get(against)
    return found


def _best_published(record: Record, sampler: str, budget: int) -> str:
    """The ratio and the name of the least error among the published methods that are neither TaylorSeer nor RFC and kept the budget."""
    here = cells_at(record, sampler, budget)
    names = [name for name, cell in here.items() if kind(name) == "published" and name not in BASELINES and is_at_budget(cell)]
    found = [(ratio[0], name) for name in names if (ratio := _ratio(record, sampler, budget, name))]
    return "{:.2f} {}".format(*min(found)) if found else NOTHING


def _ranked(record: Record, budget: int, name: str) -> float:
    ratio = _ratio(record, SAMPLER, budget, name)
    return inf if ratio is None or not is_at_budget(cells_at(record, SAMPLER, budget)[name]) else ratio[0]


def _with_interval(record: Record, budget: int, name: str) -> str:
    return interval(_ratio(record, SAMPLER, budget, name), cells_at(record, SAMPLER, budget).get(name, {}))


def _flops(record: Record, budget: int, name: str) -> str:
    cell = cells_at(record, SAMPLER, budget).get(name)
    return NOTHING if cell is None else f"{100 * cell['flops_share']:.0f}"
