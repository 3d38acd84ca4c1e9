"""Pictures of a latency record: `python -m benchmarks.plots out/latency/dit-s-1.json`.

MODEL-SAMPLES.png has the generations as bars, MODEL-SAMPLES-roofline.png the steps under the machine's roof, where programs were counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.pictures import save
from rfc.phase import ESTIMATE

OURS, RIVAL, PLAIN, TWIN = "#009e73", "#d55e00", "#444444", "#56b4e9"


MARKERS = "osD^vP*Xhd<>"


def draw(path: Path) -> list[Path]:
    """Draw what a record has; return the pictures, which lie beside it."""
    record = json.loads(path.read_text())
    pictures = {path.with_suffix(".png"): bars(record["variants"], record["settings"])}
    if any("programs" in row for row in record["variants"].values()):
        pictures[path.with_name(f"{path.stem}-roofline.png")] = roof(record["variants"], record["settings"])
    return [save(figure, where, dpi=130) for where, figure in pictures.items()]


def bars(rows: dict[str, Any], settings: dict[str, Any]) -> Figure:
    """Milliseconds of a generation by variant, 10th to 90th percentile, and the time that compiled full steps alone would take."""
    figure = Figure(figsize=(10, 1.6 + 0.32 * len(rows)))
    axes: Axes = figure.add_subplot()
    full = rows["full, compiled"]
    bound = full["generation"]["median_ms"] * settings["nfc"] / settings["steps"]
    longest = max(row["generation"]["p90_ms"] for row in rows.values())
    for index, (name, row) in enumerate(rows.items()):
        times = row["generation"]
        spread = [[max(0.0, times["median_ms"] - times["p10_ms"])], [max(0.0, times["p90_ms"] - times["median_ms"])]]
        axes.barh(index, times["median_ms"], color=color(name), height=0.72)
        axes.errorbar(times["median_ms"], index, xerr=spread, color="black", capsize=2, linewidth=0.8)
        label = f"{times['median_ms']:.0f} ms, {row['speedup_vs_compiled_full']:.2f}x"
        if row.get("nfc", settings["nfc"]) != settings["nfc"]:
            label += f", {row['nfc']} full steps"
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(max(times["median_ms"], times["p90_ms"]) + 0.015 * longest, index, label, va="center", fontsize=8, bbox=behind)
    axes.axvline(bound, color="black", linestyle=":", linewidth=1)
    axes.annotate(
        f"bound {bound:.0f} ms = {settings['nfc']} of {settings['steps']} compiled full steps",
        (bound, 1),
        (0, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left",
        fontsize=8,
    )
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.28 * longest)
    axes.set_xlabel("ms per generation (median, 10th to 90th percentile), speed-up against compiled full computation", fontsize=8)
    axes.set_title(_title(settings), fontsize=9, loc="left", pad=18)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def roof(rows: dict[str, Any], settings: dict[str, Any]) -> Figure:
    """FLOP/s of every step over its FLOPs per byte, under what the machine reached with a large copy and a large product."""
    machine = settings["machine"]
    bandwidth, peak = machine["bandwidth_bytes_per_s"], machine["flops_per_s"]
    points = [
        (name, phase, costs["flops"] / costs["bytes"], costs["flops"] / (row[phase]["median_ms"] / 1e3))
        for name, row in rows.items()
        for phase, costs in row.get("programs", {}).items()
        if phase in row and costs["flops"] and costs["bytes"]
    ]
    figure = Figure(figsize=(10, 5))
    axes: Axes = figure.add_subplot()
    ridge = peak / bandwidth
    low = min(0.5 * ridge, *(point[2] / 3 for point in points))
    high = max(2 * ridge, *(point[2] * 3 for point in points))
    axes.loglog([low, ridge, high], [low * bandwidth, peak, peak], color="black", linewidth=1.2)
    names = list(dict.fromkeys(point[0] for point in points))
    for name, phase, intensity, rate in points:
        filled = "white" if phase == ESTIMATE.name else f"C{names.index(name)}"
        axes.plot(
            intensity, rate, MARKERS[names.index(name) % len(MARKERS)], color=f"C{names.index(name)}", markerfacecolor=filled, markersize=8
        )
    legend = [
        Line2D([], [], color=f"C{index}", marker=MARKERS[index % len(MARKERS)], linestyle="", label=name)
        for index, name in enumerate(names)
    ]
    legend += [
        Line2D([], [], color="grey", marker="o", linestyle="", label="filled: FULL"),
        Line2D([], [], color="grey", marker="o", markerfacecolor="white", linestyle="", label="hollow: ESTIMATE"),
        Line2D([], [], color="black", label=f"{bandwidth / 1e9:.1f} GB/s (large copy), {peak / 1e9:.0f} GFLOP/s (large product)"),
    ]
    axes.legend(handles=legend, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    axes.set_xlabel("FLOPs per byte of Inductor's kernels", fontsize=8)
    axes.set_ylabel("FLOP/s, from the median time of a step", fontsize=8)
    axes.set_title(_title(settings), fontsize=9, loc="left")
    axes.grid(which="major", linewidth=0.3)
    return figure


def color(name: str) -> str:
    """By what runs: the plain model, the eager twin, ours, a rival."""
    if name.startswith("full"):
        return PLAIN
    if name.startswith(("cache-dit", "diffusers")):
        return RIVAL
    return TWIN if "twin" in name else OURS


def _title(settings: dict[str, Any]) -> str:
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    return (
        f"{settings['what']}\nbatch of {settings['samples']} {settings.get('guidance', 'with guidance')}, {settings['nfc']} of "
        f"{settings['steps']} steps full, {settings['device']} ({threads}), {settings['dtype']}"
    )


def main(paths: Annotated[list[Path], typer.Argument(help="records of benchmarks.latency, .json")]) -> None:
    """Draw the pictures of records."""
    for path in paths:
        for picture in draw(path):
            typer.echo(str(picture))
