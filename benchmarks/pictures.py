"""Pictures of records: PNG with a palette, a quarter of the size of true colour, and SVG that is the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image


def save(figure: Figure, path: Path, *, dpi: int = 110, colors: int | None = 96) -> Path:
    """Write a figure with that many colours, None: true colour; return its path."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    picture = Image.open(drawn).convert("RGB")
    if colors is not None:
        picture = picture.quantize(colors, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    return path


def save_svg(figure: Figure, path: Path) -> Path:
    """Write a figure whose words are text; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.family": "sans-serif"}):
        figure.savefig(path, metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path
