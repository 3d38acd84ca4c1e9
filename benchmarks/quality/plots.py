"""Pictures of the quality laboratory, from its record: error against NFC and against time, the same seeds side by side, teacher forcing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from benchmarks.files import Record
from benchmarks.pictures import save
from benchmarks.quality.cells import MAIN_KINDS, kind, names_of
from benchmarks.quality.entry import FULL
from benchmarks.quality.record import key

Arrays = Mapping[str, np.ndarray[Any, Any]]


COLORS = {
    "FORA": "#999999",
    "TaylorSeer Lite": "#f0c27b",
    "TaylorSeer": "#d55e00",
    "HiCache": "#8c4a1f",
    "FoCa": "#e31a1c",
    "Delta-DiT": "#bcbd22",
    "TeaCache": "#9467bd",
    "First-Block": "#c5a3e0",
    "DiCache": "#e377c2",
    "EasyCache": "#b15928",
    "Spectrum": "#6a3d9a",
    "SeaCache": "#1f9e89",
    "MagCache": "#5b3f8c",
    "SpeCa": "#ff9896",
    "ToCa": "#a6761d",
    "DuCa": "#666666",
    "RFC": "#009e73",
    "Projective": "#0072b2",
    "Newton": "#56b4e9",
    "Chebyshev, calibrated": "#c2185b",
    "Chebyshev": "#222222",
    "LogSNR, calibrated": "#7f7f00",
    "LogSNR": "#1f5fff",
}
"""By how a name begins; the first that fits."""


BRIGHTER = 4
"""Differences of samples are shown this much brighter."""


MARKERS = "os^Dv"
"""By order, from 1; a circle where a name has none."""


def style(name: str) -> dict[str, Any]:
    """Colour by family, marker by order; ours are drawn thicker."""
    color = next((color for start, color in COLORS.items() if name.startswith(start)), "#7f7f7f")
    order = next((int(part[2:]) for part in name.split() if part.startswith("m=") and part[2:].isdigit()), 1)
    wide = kind(name) in ("RFC", "ours")
    dotted = "-" if wide else "--"
    return {"color": color, "marker": MARKERS[(order - 1) % len(MARKERS)], "linewidth": 1.8 if wide else 1.0, "linestyle": dotted}


def draw(record: Record, arrays: Arrays, out: Path) -> list[Path]:
    """Draw everything that the record has; return the pictures."""
    model = record["settings"]["model"]
    figures: dict[str, Figure] = {}
    if record["cells"]:
        figures["error"] = curves(record, "nfc", "full computations (mean over batches)")
        figures["flops"] = curves(record, "flops_share", "floating-point operations, share of full computation's")
        compiled = "compiled" if record["settings"]["compiled"] else "not compiled"
        batch = record["settings"]["batch"]
        figures["time"] = curves(
            record, "seconds_median", f"seconds per generation of {batch} samples, {compiled}, median, not interleaved"
        )
        for sampler, settings in record["settings"]["samplers"].items():
            for budget in settings["shown"]:
                if all("pattern" in cell for cell in record["cells"]):  # records of an earlier form have none
                    figures[f"schedule-{sampler}-{budget}"] = schedules(record, sampler, budget)
                if f"{key(sampler, settings['steps'], FULL)}/tiles" in arrays:
                    figures[f"grid-{sampler}-{budget}"] = grid(record, arrays, sampler, budget)
    if record["teacher_forced"] is not None:
        figures["heat"] = heat(record["teacher_forced"])
        figures["distance"] = by_distance(record["teacher_forced"])
    grids = {name for name in figures if name.startswith("grid")}
    looks: dict[bool, dict[str, Any]] = {True: {"dpi": 75, "colors": None}, False: {}}
    return [save(of, out / f"{model}-{name}.png", **looks[name in grids]) for name, of in figures.items()]


def curves(record: Record, x: str, label: str) -> Figure:
    """Geometric-mean error of the main methods over `x`, a panel for each sampler; bars: the 95 % bootstrap interval."""
    samplers = {name: of for name, of in record["settings"]["samplers"].items() if any(c["sampler"] == name for c in record["cells"])}
    figure = Figure(figsize=(5.6 * len(samplers) + 2.4, 5.6))
    for index, (sampler, settings) in enumerate(samplers.items()):
        axes: Axes = figure.add_subplot(1, len(samplers), index + 1)
        cells = [cell for cell in record["cells"] if cell["sampler"] == sampler]
        for name in [name for name in names_of(record, sampler) if kind(name) in MAIN_KINDS]:
            line = sorted((cell for cell in cells if cell["method"] == name), key=lambda cell: float(cell["nfc"]))
            errors = [cell["error"] for cell in line]
            spread = [[cell["error"] - cell["error_low"] for cell in line], [cell["error_high"] - cell["error"] for cell in line]]
            axes.errorbar([cell[x] for cell in line], errors, yerr=spread, markersize=4, elinewidth=0.6, label=name, **style(name))
        if x.startswith("seconds") and (full := record["full"].get(sampler)) is not None:
            axes.axvline(full[x], color="black", linestyle=":", linewidth=1)
            axes.annotate("full", (full[x], 1), (2, -8), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8)
        axes.set_yscale("log")
        axes.set_title(settings["what"], fontsize=10, loc="left")
        axes.set_xlabel(label, fontsize=8)
        axes.grid(which="both", linewidth=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if index == 0:
            axes.set_ylabel("relative L2 error against full computation of the same seeds (geometric mean)", fontsize=8)
    named = {name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.axes[-1].legend(named.values(), named, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def grid(record: Record, arrays: Arrays, sampler: str, budget: int) -> Figure:
    """One sample of each class from the same noise, full computation first; on the right what differs from it, several times as bright."""
    settings = record["settings"]["samplers"][sampler]
    here = [cell for cell in record["cells"] if (cell["sampler"], cell["budget"]) == (sampler, budget)]
    cells = {cell["method"]: cell for cell in here if kind(cell["method"]) in MAIN_KINDS}
    full = arrays[f"{key(sampler, settings['steps'], FULL)}/tiles"]
    drawn = {name: arrays[at] for name in cells if (at := f"{key(sampler, budget, name)}/tiles") in arrays}
    height = 0.62 * (1 + len(drawn)) + 0.4
    figure = Figure(figsize=(15, height))
    figure.suptitle(
        f"{settings['what']}, {budget} full computations wanted: the same seeds; right: {BRIGHTER} x |x - x_0|",
        fontsize=9,
        y=1 - 0.1 / height,
    )
    figure.subplots_adjust(top=1 - 0.4 / height, bottom=0, hspace=0.06, wspace=0.02)
    for index, (name, tiles) in enumerate({FULL: full, **drawn}.items()):
        apart = np.clip(BRIGHTER * np.abs(tiles.astype(int) - full), 0, 255).astype(np.uint8)
        for column, shown in enumerate((tiles, apart)):
            axes: Axes = figure.add_subplot(1 + len(drawn), 2, 2 * index + column + 1)
            axes.imshow(strip(shown), cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="equal")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if not column:
                cell = cells.get(name)
                says = (
                    f"{settings['steps']} of {settings['steps']}" if cell is None else f"NFC {cell['nfc']:.3g}, error {cell['error']:.3f}"
                )
                axes.set_ylabel(f"{name}\n{says}", rotation=0, ha="right", va="center", fontsize=8)
    return figure


def schedules(record: Record, sampler: str, budget: int) -> Figure:
    """Which steps each method computed, in the first batch: full, in part, or not; the error beside it."""
    steps = record["settings"]["samplers"][sampler]["steps"]
    cells = [cell for cell in record["cells"] if (cell["sampler"], cell["budget"]) == (sampler, budget)]
    shades = {"#": 1.0, ".": 0.0, "-": 0.0}
    rows = np.array([[shades.get(mark, 0.4) for mark in cell["pattern"]] for cell in cells])
    figure = Figure(figsize=(10, 0.8 + 0.2 * len(cells)))
    axes: Axes = figure.add_subplot()
    axes.imshow(rows, aspect="auto", cmap="Greys", vmin=0, vmax=1.2, interpolation="nearest")
    axes.set_yticks(range(len(cells)), [f"{cell['method']}, error {cell['error']:.3f}" for cell in cells], fontsize=7)
    axes.set_xticks(np.arange(-0.5, steps), labels=[], minor=True)
    axes.set_yticks(np.arange(-0.5, len(cells)), labels=[], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("step; dark: full, grey: tokens or the last block", fontsize=8)
    axes.set_title(f"{record['settings']['samplers'][sampler]['what']}, {budget} full computations wanted", fontsize=9, loc="left")
    return figure


def strip(tiles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pictures (n, C, H, W) beside each other, with a light seam."""
    seamed = np.pad(tiles, ((0, 0), (0, 0), (0, 0), (0, max(1, tiles.shape[-1] // 16))), constant_values=255)
    row = np.concatenate(list(seamed), axis=2)
    return row[0] if len(row) == 1 else row.transpose(1, 2, 0)


def heat(forced: Record) -> Figure:
    """Teacher-forced error over sites and steps, a panel for each estimator; white where a step is full."""
    shown = forced["heat"]
    panels = {name: np.array(rows, dtype=float) for name, rows in shown["errors"].items()}
    figure = Figure(figsize=(11, 0.6 + len(panels) * (0.6 + 0.13 * len(forced["sites"]))), layout="constrained")
    finite = np.concatenate([panel[np.isfinite(panel)] for panel in panels.values()])
    scale = LogNorm(max(1e-4, float(np.quantile(finite, 0.01))), float(np.quantile(finite, 0.99)))
    image = None
    for index, (name, panel) in enumerate(panels.items()):
        axes: Axes = figure.add_subplot(len(panels), 1, index + 1)
        image = axes.imshow(panel, aspect="auto", norm=scale, cmap="viridis", interpolation="nearest")
        axes.set_title(f"{name}, N = {shown['interval']}", fontsize=9, loc="left")
        axes.set_yticks(range(len(forced["sites"])), [short(site) for site in forced["sites"]], fontsize=5)
        axes.set_ylabel("site", fontsize=8)
    figure.axes[-1].set_xlabel("step", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label="||O_hat - O|| / ||O||", shrink=0.8)
    return figure


def short(site: str) -> str:
    """The numbers and the last part of a module's path: 3.attn1."""
    parts = site.split(".")
    return ".".join([*(part for part in parts[:-1] if part.isdigit()), parts[-1]])


def by_distance(forced: Record) -> Figure:
    """Teacher-forced error over the distance k, median over sites and steps, a panel for each interval."""
    intervals = forced["intervals"]
    figure = Figure(figsize=(3.4 * len(intervals) + 2.4, 3.8))
    for index, interval in enumerate(intervals):
        axes: Axes = figure.add_subplot(1, len(intervals), index + 1)
        for number, (name, rows) in enumerate(forced["errors"].items()):
            errors = rows[str(interval)]["median_by_k"]
            line = "-" if name.startswith(("RFE", "Proj")) else "--"
            look: dict[str, Any] = {"color": f"C{number % 10}", "marker": MARKERS[number // 10], "linestyle": line, "linewidth": 1.2}
            axes.plot(range(1, len(errors) + 1), errors, markersize=4, label=name, **look)
        axes.set_title(f"N = {interval}", fontsize=9, loc="left")
        axes.set_xlabel("k, steps since the last full one", fontsize=8)
        axes.set_xticks(range(1, interval))
        axes.grid(linewidth=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("||O_hat - O|| / ||O||, median over sites and steps", fontsize=8)
    figure.axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure
