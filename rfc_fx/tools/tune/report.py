"""What tuning found: a table of the front, and a picture of it beside samples."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from rfc_fx.tools.pictures import as_picture
from rfc_fx.tools.tiles import tiles
from rfc_fx.tools.tune import Point, Tuned

SHOWN = 8
"""Samples in a row of the picture, at most."""

ROWS = 4
"""Points of the front beside the reference, at most."""


def front_table(tuned: Tuned) -> Table:
    """The points that no other is both faster and nearer than."""
    whole = tuned.points[0]
    table = Table(title=f"error to {tuned.reference_is}, geometric mean; s: median of a draw")
    for head in ("sampler", "method", "NFC", "s", "faster", "error", ""):
        table.add_column(head, justify="right" if head in ("NFC", "s", "faster", "error") else "left")
    for point in tuned.front:
        chosen = "chosen" if point is tuned.chosen else ""
        ratio = f"{whole.seconds / point.seconds:.2f}x"
        table.add_row(str(point.sampler), point.what, str(point.nfc), f"{point.seconds:.3g}", ratio, f"{point.error:.2g}", chosen)
    return table


def measured_of(point: Point, tuned: Tuned) -> dict[str, Any]:
    """What stands in the method file beside the method."""
    sampler = point.sampler
    return {
        "scheduler": type(sampler.scheduler).__name__,
        "exchanged": bool(sampler.name),
        "steps": sampler.steps,
        "method": point.what,
        "nfc": point.nfc,
        "seconds": point.seconds,
        "speedup": tuned.points[0].seconds / point.seconds,
        "error": point.error,
        "error_to": tuned.reference_is,
    }


def save_front(tuned: Tuned, path: Path) -> None:
    """Errors over seconds of all points, with the front as a line; beside it, samples of some of its points."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.15]})
    _plot(left, tuned)
    shown = [point for point in tuned.front if point is not tuned.chosen][: ROWS - 1]
    shown = sorted({id(point): point for point in (*shown, tuned.chosen)}.values(), key=lambda point: point.seconds)
    rows = [(f"{point.what}\nNFC {point.nfc}, {point.seconds:.3g} s\nerror {point.error:.2g}", point.samples) for point in shown]
    rows.append((tuned.reference_is.replace(", ", "\n").replace("all steps of ", ""), tuned.reference))
    strips = [_strip(samples) for _, samples in rows]
    width = max(strip.shape[-1] for strip in strips)
    strips = [F.pad(strip, (0, width - strip.shape[-1], 0, 4), value=1.0) for strip in strips]
    right.imshow(as_picture(torch.cat(strips, dim=1)))
    right.set_xticks([])
    middles = torch.tensor([strip.shape[1] for strip in strips]).cumsum(0) - torch.tensor([strip.shape[1] for strip in strips]) / 2
    right.set_yticks(middles.tolist(), [text for text, _ in rows], fontsize=8)
    for edge in right.spines.values():
        edge.set_visible(False)
    right.tick_params(length=0)
    figure.savefig(path, dpi=110)


def _plot(axes: Axes, tuned: Tuned) -> None:
    for what in dict.fromkeys(point.what for point in tuned.points):
        points = [point for point in tuned.points if point.what == what and point.error > 0]
        if points:
            axes.plot([p.seconds for p in points], [p.error for p in points], "o", markersize=4, label=what)
    front = [point for point in tuned.front if point.error > 0]
    axes.plot([p.seconds for p in front], [p.error for p in front], color="#444444", linewidth=1, label="front")
    if tuned.chosen.error > 0:
        axes.plot(tuned.chosen.seconds, tuned.chosen.error, "o", markersize=11, fillstyle="none", color="#d55e00", label="chosen")
    axes.set_yscale("log")
    estimated = [point.error for point in tuned.points if point.error > 0 and point.nfc < point.sampler.steps]
    if estimated:  # what full computation has is rounding, far below
        axes.set_ylim(min(estimated) / 2, max(estimated) * 2)
    axes.set_xlabel("seconds of a draw")
    axes.set_ylabel(f"error to {tuned.reference_is}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _strip(samples: Tensor) -> Tensor:
    """Some samples side by side."""
    shown = tiles(samples[:: ceil(len(samples) / SHOWN)][:SHOWN])
    return torch.cat(list(F.pad(shown, (0, 3), value=1.0)), dim=-1)
