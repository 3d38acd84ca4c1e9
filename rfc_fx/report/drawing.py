"""Drawing: the guarded graph of one block as a picture."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import fx

from rfc_fx.errors import RFCError
from rfc_fx.io.atomic import write_atomically
from rfc_fx.ir.ops import flops, is_heavy, is_view, select, shape
from rfc_fx.passes.guard import Guarded
from rfc_fx.report.text import path_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLORS = {"work of a site": "#f4a582", "guard": "#92c5de", "other heavy operation": "#f7dc6f", "operation": "#eeeeee"}
"""What is skipped, what decides, what an estimate still pays for, and the rest."""


FORMATS = (".svg", ".png", ".pdf")


def check_picture(path: str | Path) -> None:
    """RFCError where no picture can have this path: another format, or no such folder."""
    if (suffix := Path(path).suffix) not in FORMATS:
        raise RFCError(f"draw: {path}: must end in one of {', '.join(FORMATS)}, got {suffix or 'no ending'}")
    if not Path(path).parent.is_dir():
        raise RFCError(f"draw: {path}: cannot be written: there is no folder {Path(path).parent}; make it, or pass another path")


def draw(guarded: Guarded, path: str | Path, block: str, title: str, blocks: Sequence[str]) -> None:
    """Draw the guarded graph of a block ("" for all) of the model `title` to .png, .svg or .pdf; `blocks` are those that it has.

    Raises RFCError when no operation lies in that block, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_picture(path)
    nodes = [node for node in guarded.module.graph.nodes if _drawn(node) and _within(path_of(node), block)]
    if not nodes:
        known = ", ".join(blocks[:4])
        raise RFCError(f"draw: no operation of {title} lies in {block!r}; blocks are {known} ...")
    places = _places(nodes)
    width, height = max(x for x, _ in places.values()) + 1, max(y for _, y in places.values()) + 1
    figure = Figure(figsize=(3.1 * width + 0.5, 0.62 * height + 1.0))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.6, width - 0.4)
    axes.set_ylim(height - 0.2, -1.6)
    axes.text(-0.5, -1.2, f"{title}, guarded graph{f' of {block}' if block else ''}", fontsize=11, va="center")
    for i, (kind, color) in enumerate(COLORS.items()):
        axes.text(-0.5 + 0.75 * i, -0.75, kind, fontsize=7, va="center", bbox={"boxstyle": "round", "fc": color, "ec": "#888888"})
    for node, (x, y) in places.items():
        _draw_node(axes, node, x, y)
        for source in _sources(node, places):
            a, b = places[source]
            bend = "arc3,rad=0.25" if a == x and y - b > 1 else "arc3"
            axes.annotate(
                "",
                (x, y - 0.27),
                (a, b + 0.27),
                arrowprops={"arrowstyle": "->", "color": "#666666", "lw": 0.8, "connectionstyle": bend},
            )
    try:
        write_atomically(Path(path), lambda unfinished: figure.savefig(unfinished, dpi=110))
    except OSError as error:
        raise RFCError(f"draw: {path}: cannot be written: {error.strerror or error}") from error


def _draw_node(axes: Axes, node: fx.Node, x: float, y: float) -> None:
    size = "x".join(map(str, shape(node)))
    if node.op == "call_module":
        kind, text = "work of a site", f"{str(node.target).removeprefix('full_')}\n{flops([node]) / 1e6:.3g} MFLOP"
    elif node.target is select:
        kind, text = "guard", f"full or estimate?  {size}"
    else:
        name = getattr(node.target, "__name__", str(node.target)).removesuffix(".default").removesuffix(".Tensor")
        kind, text = ("other heavy operation" if is_heavy(node) else "operation"), f"{name}  {size}"
    axes.text(x, y, text, fontsize=7, ha="center", va="center", bbox={"boxstyle": "round", "fc": COLORS[kind], "ec": "#888888"})


def _within(path: str, block: str) -> bool:
    return not block or path == block or path.startswith(f"{block}.")


def _drawn(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_module") and not _passes(node)


def _passes(node: fx.Node) -> bool:
    """Views and parts of results are left out: an arrow passes through them."""
    return is_view(node) or node.target is operator.getitem


def _sources(node: fx.Node, places: Mapping[fx.Node, tuple[float, float]]) -> list[fx.Node]:
    """The drawn operations a node reads from, through views."""
    found: dict[fx.Node, None] = {}
    pending = list(node.all_input_nodes)
    while pending:
        source = pending.pop()
        if source in places:
            found[source] = None
        elif _passes(source):
            pending.extend(source.all_input_nodes)
    return list(found)


def _places(nodes: list[fx.Node]) -> dict[fx.Node, tuple[float, float]]:
    """Rows by the longest way from the top, columns beside what is read from."""
    places: dict[fx.Node, tuple[float, float]] = {}
    taken: set[tuple[float, float]] = set()
    for node in nodes:
        above = [places[source] for source in _sources(node, places)]
        row = max((y for _, y in above), default=-1.0) + 1
        column = max(above, key=lambda place: place[1])[0] if above else 0.0
        while (column, row) in taken:
            column += 1
        places[node] = (column, row)
        taken.add((column, row))
    return places
