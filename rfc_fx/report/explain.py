"""Explain: for every block of a model, what became a site, what did not and why, with a drawing of one block's guarded graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import nn

from rfc import RFC
from rfc.granularity import block_of
from rfc.method import Method
from rfc_fx.capture.export import args_and_kwargs
from rfc_fx.ir.config import Config
from rfc_fx.passes.build import build
from rfc_fx.passes.guard import Guarded
from rfc_fx.report.drawing import draw
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.kinds import cached_model
from rfc_fx.runtime.summary import as_text
from rfc_fx.sites.residual import SiteAnalysis


@dataclass(frozen=True)
class Explanation:
    """What `transform` makes of a model; printable, and drawable block by block."""

    model: str
    analysis: SiteAnalysis
    guarded: Guarded
    share: float
    """FLOPs of an ESTIMATE step as a share of a FULL step's."""

    @property
    def blocks(self) -> dict[str, tuple[list[str], list[tuple[str, str]]]]:
        """For every block: its sites, and its rejected branches with the reasons."""
        blocks: dict[str, tuple[list[str], list[tuple[str, str]]]] = {}
        for site in self.analysis.sites:
            blocks.setdefault(block_of(site.name), ([], []))[0].append(site.name)
        for where, why in self.analysis.rejected:
            blocks.setdefault(block_of(where), ([], []))[1].append((where, why))
        return blocks

    def table(self) -> Table:
        """One row per block."""
        sites, rejected = self.analysis.sites, self.analysis.rejected
        title = f"{self.model}: {len(sites)} sites, {len(rejected)} rejected, ESTIMATE {self.share:.2%} of FULL's FLOPs"
        table = Table(title=title, title_justify="left")
        for column in ("block", "sites", "not a site, because"):
            table.add_column(column)
        for block, (names, reasons) in self.blocks.items():
            inside = ["the whole block" if name == block else name.removeprefix(f"{block}.") for name in names]
            outside = [f"{where.removeprefix(block).lstrip('.') or 'here'}: {why}" for where, why in reasons]
            table.add_row(escape(block or "outside blocks"), escape("\n".join(inside)), escape("\n".join(outside)))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return as_text(self.table())

    def draw(self, path: str | Path, block: str | None = None) -> None:
        """Draw the guarded graph of a block (default: the first with a site; all for a site that is the stack) to .png, .svg or .pdf.

        Raises RFCError when no operation lies in that block, or the file cannot be written.
        """
        block = block if block is not None else block_of(self.analysis.sites[0].name)
        draw(self.guarded, path, block, self.model, list(self.blocks))


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
    cached = model if isinstance(model, CachedModel) else cached_model(model, method or RFC(), config, build)
    if example_inputs is not None:
        args, kwargs = args_and_kwargs(example_inputs)
        cached.trace(*args, **kwargs)
    return Explanation(type(cached.model).__name__, cached.compiled.analysis, cached.guarded, cached.plan().estimate_share)
