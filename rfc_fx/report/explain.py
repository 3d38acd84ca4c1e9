"""Explain: for every block of a model, what became a site, what did not and why, with a drawing of one block's guarded graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from torch import fx, nn

from rfc import RFC
from rfc.granularity import block_of
from rfc.method import Method
from rfc_fx.capture.export import args_and_kwargs
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config
from rfc_fx.ir.ops import flops, is_heavy, is_view, select, shape
from rfc_fx.passes.guard import Guarded
from rfc_fx.report.text import path_of
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.kinds import cached_model
from rfc_fx.runtime.summary import as_text
from rfc_fx.sites.residual import Found

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


@dataclass(frozen=True)
class Explanation:
    """What `transform` makes of a model; printable, and drawable block by block."""

    model: str
    found: Found
    guarded: Guarded
    share: float
    """FLOPs of an ESTIMATE step as a share of a FULL step's."""

    @property
    def blocks(self) -> dict[str, tuple[list[str], list[tuple[str, str]]]]:
        """For every block: its sites, and its rejected branches with the reasons."""
        found: dict[str, tuple[list[str], list[tuple[str, str]]]] = {}
        for site in self.found.sites:
            found.setdefault(block_of(site.name), ([], []))[0].append(site.name)
        for where, why in self.found.rejected:
            found.setdefault(block_of(where), ([], []))[1].append((where, why))
        return found

    def table(self) -> Table:
        """One row per block."""
        title = (
            f"{self.model}: {len(self.found.sites)} sites, {len(self.found.rejected)} rejected, ESTIMATE {self.share:.2%} of FULL's FLOPs"
        )
        table = Table(title=title, title_justify="left")
        for column in ("block", "sites", "not a site, because"):
            table.add_column(column)
        for block, (sites, rejected) in self.blocks.items():
            inside = ["the whole block" if site == block else site.removeprefix(f"{block}.") for site in sites]
            reasons = [f"{where.removeprefix(block).lstrip('.') or 'here'}: {why}" for where, why in rejected]
            table.add_row(escape(block or "outside blocks"), escape("\n".join(inside)), escape("\n".join(reasons)))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return as_text(self.table())

    def draw(self, path: str | Path, block: str | None = None) -> None:
        """Draw the guarded graph of a block (default: the first with a site; all for a site that is the stack) to .png, .svg or .pdf.

        Raises RFCError when no operation lies in that block, or the file cannot be written.
        """
        from matplotlib.figure import Figure

        check_picture(path)
        block = block if block is not None else block_of(self.found.sites[0].name)
        nodes = [node for node in self.guarded.module.graph.nodes if _drawn(node) and _within(path_of(node), block)]
        if not nodes:
            known = ", ".join(list(self.blocks)[:4])
            raise RFCError(f"draw: no operation of {self.model} lies in {block!r}; blocks are {known} ...")
        places = _places(nodes)
        width, height = max(x for x, _ in places.values()) + 1, max(y for _, y in places.values()) + 1
        figure = Figure(figsize=(3.1 * width + 0.5, 0.62 * height + 1.0))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-0.6, width - 0.4)
        axes.set_ylim(height - 0.2, -1.6)
        axes.text(-0.5, -1.2, f"{self.model}, guarded graph{f' of {block}' if block else ''}", fontsize=11, va="center")
        for i, (kind, color) in enumerate(COLORS.items()):
            axes.text(-0.5 + 0.75 * i, -0.75, kind, fontsize=7, va="center", bbox={"boxstyle": "round", "fc": color, "ec": "#888888"})
        for node, (x, y) in places.items():
            self._draw_node(axes, node, x, y)
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
            figure.savefig(path, dpi=110)
        except OSError as error:
            raise RFCError(f"draw: {path}: cannot be written: {error.strerror or error}") from error

    def _draw_node(self, axes: Axes, node: fx.Node, x: float, y: float) -> None:
        size = "x".join(map(str, shape(node)))
        if node.op == "call_module":
            kind, text = "work of a site", f"{str(node.target).removeprefix('full_')}\n{flops([node]) / 1e6:.3g} MFLOP"
        elif node.target is select:
            kind, text = "guard", f"full or estimate?  {size}"
        else:
            name = getattr(node.target, "__name__", str(node.target)).removesuffix(".default").removesuffix(".Tensor")
            kind, text = ("other heavy operation" if is_heavy(node) else "operation"), f"{name}  {size}"
        axes.text(x, y, text, fontsize=7, ha="center", va="center", bbox={"boxstyle": "round", "fc": COLORS[kind], "ec": "#888888"})


def explain(
    model: nn.Module,
    method: Method | None = None,
    *,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    config: Config = Config(),
) -> Explanation:
    """Say for every block of a model what is cached, what is not, and why.

    `model`: what `rfc_fx.transform` returned (explained as it stands), or a model with the `example_inputs` of one call, which is captured
    with `method` (None: `rfc.RFC()`) and `config` and not run. Raises what `transform` raises, RFCError where nothing was captured.
    """
    cached = model if isinstance(model, CachedModel) else cached_model(model, method or RFC(), config)
    if example_inputs is not None:
        args, kwargs = args_and_kwargs(example_inputs)
        cached.trace(*args, **kwargs)
    return Explanation(type(cached.model).__name__, cached.compiled.found, cached.guarded, cached.plan().estimate_share)


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
