"""Pictures: the samples of all methods under each other, and which steps each method computed."""

from __future__ import annotations

from math import ceil, isfinite
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from rfc.phase import phase_named
from rfc_fx.tools.compare import Comparison, Row
from rfc_fx.tools.tiles import tiles
from rfc_fx.tools.variants import FULL

ENGINE = "engine"
"""Name of the row of an exported model."""


LABELS = {
    FULL: "full computation",
    "fora": "FORA",
    "taylorseer": "TaylorSeer",
    "taylorseer-lite": "TaylorSeer-Lite",
    "hicache": "HiCache",
    "foca": "FoCa",
    "delta-dit": "Delta-DiT",
    "rfc": "RFC",
    "projective": "Projective",
    "newton": "Newton",
    "chebyshev": "Chebyshev",
    "log-snr": "LogSNR",
    "speca": "SpeCa",
    "teacache": "TeaCache",
    "first-block": "First-Block",
    "dicache": "DiCache",
    "easycache": "EasyCache",
    "spectrum": "Spectrum",
    "seacache": "SeaCache",
    "magcache": "MagCache",
    "toca": "ToCa",
    "duca": "DuCa",
    "disca": "DisCa",
    ENGINE: "engine",
}
"""Names of the methods as people write them."""


COLORS = {
    FULL: "#444444",
    "fora": "#0072b2",
    "taylorseer": "#d55e00",
    "taylorseer-lite": "#8c510a",
    "hicache": "#b2182b",
    "foca": "#e31a1c",
    "delta-dit": "#56b4e9",
    "rfc": "#009e73",
    "projective": "#cc79a7",
    "newton": "#7b3294",
    "chebyshev": "#8c2d6e",
    "log-snr": "#1f4fd8",
    "speca": "#5ab4ac",
    "teacache": "#1b7837",
    "first-block": "#2166ac",
    "dicache": "#762a83",
    "easycache": "#b15928",
    "spectrum": "#6a3d9a",
    "seacache": "#1f9e89",
    "magcache": "#35978f",
    "toca": "#bf812d",
    "duca": "#c51b7d",
    "disca": "#4d9221",
    ENGINE: "#e69f00",
}


PRESET = "#999933"


def label_of(method: str) -> str:
    """The method's name as people write it; of a method file that of the file."""
    return LABELS.get(method, Path(method).stem)


def color_of(method: str) -> str:
    """The colour of a method in every picture."""
    return COLORS.get(method, PRESET)


NOTHING = (".", "-")
"""Marks of the phases that compute no part of the blocks (`rfc_fx.runtime.summary.mark`)."""


PART = 0.4
"""How much of its method's colour a step has that computes a part."""


MIN_BAND = 66
"""Three lines of text stand beside a band."""


MARGIN, GAP = 200, 14

LINES = 4
"""Of a prompt over a column, at most."""


def decibel(value: float) -> str:
    """A PSNR as text."""
    return f"{value:.1f} dB" if isfinite(value) else str(value)


def save_images(of: Comparison, path: Path) -> None:
    """One band per method, one block per class or prompt in it, one tile per seed; the same places in every band."""
    groups, seeds = of.source.groups, len(of.source.seeds)
    blocks = [_blocks(row, len(groups), seeds) for row in of.rows]
    font, bold = ImageFont.load_default(size=15), ImageFont.load_default(size=18)
    width, height = blocks[0][0].size
    height = max(height, MIN_BAND)
    titles = [_wrapped(group, bold, width) for group in groups]
    line = 20
    header = line * max(map(len, titles)) + GAP
    picture = Image.new("RGB", (MARGIN + len(groups) * (width + GAP), header + len(of.rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        middle = MARGIN + column * (width + GAP) + width / 2
        for number, text in enumerate(title, start=1):
            draw.text((middle, header - GAP / 2 - line * (len(title) - number + 0.5)), text, fill="black", font=bold, anchor="mm")
    for band, (row, blocks_of_row) in enumerate(zip(of.rows, blocks, strict=True)):
        top = header + band * (height + GAP)
        lines = [f"{of.nfc_text(row)} of {of.settings.steps} steps full"]
        lines += [] if row.method in (FULL, ENGINE) else [f"PSNR {decibel(row.psnr_db)}"]
        draw.text((8, top + height / 2 - 20), label_of(row.method), fill=color_of(row.method), font=bold, anchor="lm")
        draw.multiline_text((8, top + height / 2 - 9), "\n".join(lines), fill="black", font=font)
        for column, tile in enumerate(blocks_of_row):
            picture.paste(tile, (MARGIN + column * (width + GAP), top))
    picture.save(path, format="PNG")


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """At most four lines of at most this width in pixels; what does not fit is left out."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*filter(None, lines), _shortened(word, font, width)]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], _shortened(f"{lines[LINES - 1]}...", font, width)]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _blocks(row: Row, groups: int, seeds: int) -> list[Image.Image]:
    """The samples of each group in a block, as square as it goes."""
    shown = F.pad(tiles(row.best.samples), (0, 2, 0, 2), value=1.0)
    across = ceil(seeds**0.5)
    blocks = []
    for group in range(groups):
        mine = list(shown[group * seeds : (group + 1) * seeds])
        mine += [torch.ones_like(mine[0])] * (-len(mine) % across)
        lines = [torch.cat(mine[i : i + across], dim=2) for i in range(0, len(mine), across)]
        blocks.append(as_picture(torch.cat(lines, dim=1)))
    return blocks


def as_picture(image: Tensor) -> Image.Image:
    """(C, H, W) in [-1, 1] as a picture in RGB; not a number is black."""
    pixels = ((image.nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    if pixels.shape[0] == 1:
        pixels = pixels.expand(3, -1, -1)
    return Image.fromarray(pixels[:3].permute(1, 2, 0).contiguous().numpy())


def save_schedule(of: Comparison, path: Path) -> None:
    """Which steps each method computed in full, a strip for each seed; below, the accumulated error of the first seed."""
    watching = [row for row in of.rows if row.records and of.methods[row.method].schedule.watches]
    rows, steps = len(of.rows), of.settings.steps
    ratios = [0.32 * rows + 0.3, *([2.0 + 0.2 * len(watching)] if watching else [])]
    figure = Figure(figsize=(9, sum(ratios) + 0.9), layout="constrained")
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for i, row in enumerate(of.rows):
        strips = of.phases(row)
        for j, phases in enumerate(strips):
            place = (i - 0.36 + 0.72 * j / len(strips), 0.72 / len(strips))
            for step, phase in enumerate(phases):
                color = "#e8e8e8" if phase in NOTHING else to_rgba(color_of(row.method), 1.0 if phase == "#" else PART)
                axes[0].broken_barh([(step - 0.42, 0.84)], place, facecolors=color)
    axes[0].set_yticks(range(rows), [f"{label_of(row.method)}, NFC {of.nfc_text(row)}" for row in of.rows])
    axes[0].set_ylim(rows - 0.5, -0.5)
    axes[0].set_xlim(-0.7, steps - 0.3)
    axes[0].set_title(
        "steps computed in full (coloured), in part (pale) and estimated (grey); a strip for each seed", fontsize=10, loc="left"
    )
    for row in watching:
        _accumulated(of, row, axes[1])
    if watching:
        axes[1].set_ylabel(f"eps that counts, seed {of.source.seeds[0]}")
        axes[1].set_ylim(bottom=0)
        axes[1].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0)
    axes[-1].set_xlabel("sampling step, from noise to image")
    figure.savefig(path, dpi=120, format="png")


def _accumulated(of: Comparison, row: Row, plot: Axes) -> None:
    schedule, record = of.methods[row.method].schedule, row.records[0]
    color, name = color_of(row.method), label_of(row.method)
    totals = [float("nan") if total is None else total for total in record.totals]
    full = [step for step, phase in enumerate(record.phases) if phase_named(phase).computes_sites]
    what = "accumulated eps" if schedule.accumulates else "eps"
    plot.plot(range(len(totals)), totals, ".-", color=color, linewidth=1, label=f"{name}: {what}")
    plot.plot(full, [totals[s] for s in full], "o", color=color, markersize=5, label=f"{name}: full step")
    if (threshold := schedule.threshold) is not None and isfinite(threshold):
        label = f"threshold = {threshold:g}"
        plot.axhline(threshold, color=color, linestyle="--", linewidth=1, label=label)
