"""Tables of the page of results that are made from all quality records together."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from benchmarks.quality.cells import MAIN_KINDS, cells_at, interval, is_at_budget
from benchmarks.quality.figures import SAMPLER, QualityFigures
from benchmarks.quality.methods import BASELINES, METHODS, PUBLISHED_RFC
from benchmarks.quality.parts import ABLATIONS
from benchmarks.tables import table

BUDGETS = (14, 8)
"""Of the main table."""


OURS = "LogSNR"


AT_EVERY_BUDGET = (*PUBLISHED_RFC, "Chebyshev", OURS)
"""The rows of the second table, beside the best of the other published methods."""


NOTHING = "-"


Models = Mapping[str, QualityFigures]


def main_table(models: Models) -> str:
    """Methods by models and budgets with intervals; bold: the smallest of a column."""
    columns = [(figures, budget) for figures in models.values() for budget in BUDGETS]
    names = [name for name, entry in METHODS.items() if entry.kind in MAIN_KINDS and name not in BASELINES]
    names = [name for name in names if any(figures.interval(name, budget) for figures, budget in columns)]
    least = [min(names, key=lambda name: _ranked(figures, budget, name), default=None) for figures, budget in columns]
    rows = []
    for name in names:
        cells = [_with_interval(figures, budget, name) for figures, budget in columns]
        cells = [f"**{cell}**" if name == best else cell for cell, best in zip(cells, least, strict=True)]
        rows.append([name, *cells, *(" / ".join(_flops(figures, budget, name) for budget in BUDGETS) for figures in models.values())])
    heads = [f"{model}, NFC {budget}" for model in models for budget in BUDGETS]
    return table(["method", *heads, *(f"% of the FLOPs, {model}" for model in models)], rows)


def budget_table(models: Models) -> str:
    """Methods by sampler and budget, and the share of the better RFC's error; bold: the interval ends below 1."""
    samplers = {name: sampler["what"] for of in models.values() for name, sampler in of.record["settings"]["samplers"].items()}
    points = dict.fromkeys(
        (sampler, budget) for sampler in samplers for of in models.values() for at, budget in of.budgets if at == sampler
    )
    rows = []
    for model, figures in models.items():
        for name in AT_EVERY_BUDGET:
            ratios = [figures.interval(name, budget, sampler) for sampler, budget in points]
            rows.append([f"{model}: {name}", *(NOTHING if ratio is None else f"{ratio[0]:.2f}" for ratio in ratios)])
        best = [figures.best_published(*point) for point in points]
        rows.append([f"{model}: best of the other published", *(NOTHING if of is None else "{:.2f} {}".format(*of) for of in best)])
        ratios = [figures.interval(OURS, budget, sampler, "rfc") for sampler, budget in points]
        cells = (NOTHING if ratio is None else f"**{ratio[0]:.2f}**" if ratio[2] < 1 else f"{ratio[0]:.2f}" for ratio in ratios)
        rows.append([f"{model}: {OURS} against the better RFC", *cells])
    return table(["", *(f"{samplers[sampler]}, NFC {budget}" for sampler, budget in points)], rows)


def ablation_table(models: Models) -> str:
    """RFC's parts by themselves: estimator by order, models and budgets beside each other."""
    columns = [(model, figures, budget) for model, figures in models.items() for budget in BUDGETS]
    rows = [
        [
            f"{label}, {order}",
            *(NOTHING if (ratio := of.interval(name, budget)) is None else f"{ratio[0]:.2f}" for _, of, budget in columns),
        ]
        for order, parts in ABLATIONS.items()
        for label, name in parts.items()
    ]
    return table(["", *(f"{model}, NFC {budget}" for model, _, budget in columns)], rows)


def _ranked(figures: QualityFigures, budget: int, name: str) -> float:
    ratio = figures.interval(name, budget)
    return inf if ratio is None or not is_at_budget(figures.cell(name, budget)) else ratio[0]


def _with_interval(figures: QualityFigures, budget: int, name: str) -> str:
    return interval(figures.interval(name, budget), cells_at(figures.record, SAMPLER, budget).get(name, {}))


def _flops(figures: QualityFigures, budget: int, name: str) -> str:
    cell = cells_at(figures.record, SAMPLER, budget).get(name)
    return NOTHING if cell is None else f"{100 * cell['flops_share']:.0f}"
