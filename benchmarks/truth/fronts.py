"""Error to the converged solution against full computations, FLOPs and time, and who is on the Pareto fronts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.files import RESULTS, Record, read_json
from benchmarks.pictures import save_svg
from benchmarks.tables import table
from benchmarks.truth.contenders import ALL_STEPS, CONTENDERS, LOG_SNR, PLAIN_STEPS, TUNED, all_contenders
from benchmarks.truth.rows import Cell, Rows
from benchmarks.truth.tables import NOTHING, read
from benchmarks.truth.timing import RECORD

PICTURE = RESULTS / "truth" / "fronts.svg"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A contender at n evaluations."""

    contender: str
    n: int
    error: float
    """To the converged solution, geometric mean."""
    flops: float
    """Of a generation, in full steps."""
    ms: float
    """Median of a generation of a batch."""
    p10_ms: float
    p90_ms: float

    def __str__(self) -> str:
        return f"{self.n} {self.contender}"


Cost = Callable[[Point], float]

AXES: dict[str, Cost] = {"NFC": lambda point: point.n, "FLOPs": lambda point: point.flops, "time": lambda point: point.ms}
"""What is paid for a picture."""

UNITS = {"NFC": "full computations", "FLOPs": "FLOPs, in full steps", "time": "ms of a batch"}

LOOKS = {
    PLAIN_STEPS: ("#7f7f7f", "s"),
    LOG_SNR: ("#1f5fff", "o"),
    TUNED[0]: ("#e69f00", "^"),
    TUNED[1]: ("#009e73", "D"),
    ALL_STEPS: ("#000000", "*"),
}
"""Colour and marker."""

Fronts = Mapping[str, Sequence[Point]]
"""Points of each model."""


def front(points: Sequence[Point], cost: Cost) -> list[Point]:
    """The points that no other one beats in cost and error, the cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (cost(point), point.error)):
        if not kept or point.error < kept[-1].error:
            kept.append(point)
    return kept


def points(model: str, rows: Rows, measured: Record) -> list[Point]:
    """The contenders that were timed, with their errors on the groups of seeds that all have."""
    timed = {_work(Cell(**row["cell"])): row for row in measured["rows"]}
    cells = {cell: name for cell, name in all_contenders(model, rows).items() if _work(cell) in timed}
    groups = rows.judged_groups(*cells)
    errors = {cell: rows.geometric_mean(cell, groups, "truth") for cell in cells}
    return [
        Point(
            contender=name,
            n=cell.n,
            error=error,
            flops=timed[_work(cell)]["flops_full_steps"],
            ms=timed[_work(cell)]["median_ms"],
            p10_ms=timed[_work(cell)]["p10_ms"],
            p90_ms=timed[_work(cell)]["p90_ms"],
        )
        for cell, name in cells.items()
        if (error := errors[cell]) is not None
    ]


def _work(cell: Cell) -> Cell:
    """What is timed: it does not depend on where a sampler's levels are."""
    return replace(cell, spacing="")


def fronts_table(fronts: Fronts) -> str:
    """Who is on the front of each axis, the cheapest first, with the errors."""
    rows = [
        [model, axis, ", ".join(f"{point} ({point.error:.4f})" for point in front(of, cost))]
        for model, of in fronts.items()
        for axis, cost in AXES.items()
    ]
    return table(["model", "against", "Pareto front, from the cheapest (error)"], rows)


def costs_table(fronts: Fronts, measured: Record) -> str:
    """Error, FLOPs and time of every contender; bold on the front of time."""
    rows = []
    for model, of in fronts.items():
        on_front = front(of, AXES["time"])
        by = {(point.contender, point.n): _cost(point, is_bold=point in on_front) for point in of}
        whole = ", ".join(cell for (name, _), cell in by.items() if name == ALL_STEPS)
        step = f"{measured[model]['step']['median_ms']:.1f}"
        for n in sorted({n for name, n in by if name != ALL_STEPS}, reverse=True):
            rows.append([model, step, str(n), *(by.get((name, n), NOTHING) for name in CONTENDERS if name != ALL_STEPS), whole])
            step = whole = ""
    return table(["model", "one step, ms", "n", *CONTENDERS], rows)


def _cost(point: Point, *, is_bold: bool) -> str:
    text = f"{point.error:.4f}; {point.flops:.2f}; {point.ms:.0f} ({point.p10_ms:.0f}-{point.p90_ms:.0f})"
    return f"**{text}**" if is_bold else text


def measured(folder: Path) -> Record:
    """The record of times; empty where nothing was timed."""
    return read_json(folder / RECORD) if (folder / RECORD).exists() else {}


def fronts_of(folder: Path) -> Fronts:
    """The points of every model that was timed."""
    records, times = read(folder), measured(folder)
    return {model: points(model, rows, times[model]) for model, rows in records.items() if model in times}


def figures(folder: Path) -> dict[str, Any]:
    """What the page of results is told of the fronts in a folder's records."""
    fronts, times = fronts_of(folder), measured(folder)
    return {"times": times, "fronts_table": fronts_table(fronts), "costs_table": costs_table(fronts, times)}


def drawn(folder: Path = RESULTS / "truth", path: Path = PICTURE) -> Path | None:
    """Write the picture, a row for each model and a panel for each axis; None where nothing was timed."""
    fronts = fronts_of(folder)
    if not fronts:
        return None
    figure = Figure(figsize=(9, 0.5 + 2.1 * len(fronts)), layout="constrained")
    panels = figure.subplots(len(fronts), len(AXES), squeeze=False, sharey="row")
    for row, (model, of) in zip(panels, fronts.items(), strict=True):
        for axes, (axis, cost) in zip(row, AXES.items(), strict=True):
            kept = front(of, cost)
            axes.step([cost(p) for p in kept], [p.error for p in kept], where="post", color="#bbbbbb", linewidth=1, zorder=0)
            for name, (color, marker) in LOOKS.items():
                own = [point for point in of if point.contender == name]
                axes.plot([cost(p) for p in own], [p.error for p in own], marker, color=color, markersize=4, label=name)
            for scale, which in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
                scale("log")
                which.set_major_locator(LogLocator(subs=(1, 2, 5)))
                which.set_major_formatter("{x:g}")
                which.set_minor_locator(NullLocator())
            axes.set_xlabel(UNITS[axis], fontsize=7)
            axes.tick_params(labelsize=6)
            axes.grid(linewidth=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{model}\nerror to the truth", fontsize=7)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=7, frameon=False)
    return save_svg(figure, path)
