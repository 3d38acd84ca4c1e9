"""Inspection: what `transform` would do to a model: its sites, state and FLOPs, without drawing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import nn

import rfc_fx
from rfc.granularity import GranularityName, block_of
from rfc.method import Method
from rfc.phase import ESTIMATE, FULL
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config
from rfc_fx.ir.ops import shape
from rfc_fx.ir.plan import Level
from rfc_fx.report.explain import explain
from rfc_fx.report.text import guarded_text
from rfc_fx.runtime import summary as show
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.tools.load import one_line


def inspect_model(
    model: nn.Module,
    inputs: dict[str, Any],
    method: Method,
    config: Config,
    block: str | None,
    draw: Path | None = None,
) -> Iterator[RenderableType]:
    """Sites, rejections, state per granularity and the guarded graph of one block, as rich renderables; `draw`: that graph as a picture.

    Raises RFCError when the model has no site at this granularity, `block` is in no site's path, or the picture cannot be written.
    """
    transformed = rfc_fx.transform(model, method, example_inputs=inputs, config=config)
    granularity = transformed.compiled.analysis.granularity
    block_path = _block_to_show(transformed, block)
    graph = _block_graph(transformed, block_path)
    if draw is not None:
        explain(transformed).draw(draw, _module_path(block_path))
    by_granularity: dict[str, CachedModel] = {granularity: transformed}
    reasons: dict[str, str] = {}
    for other in get_args(GranularityName) if method.granularity is None else ():
        if other != granularity:
            try:
                by_granularity[other] = rfc_fx.transform(
                    model, method, example_inputs=inputs, config=replace(config, granularity=other, state_budget=None)
                )
            except (RFCError, ValueError) as error:  # none here, or none that the method could use
                reasons[other] = one_line(error)
    yield _sites(transformed, granularity)
    yield _rejections(transformed)
    yield _dependence(transformed)
    yield _state(transformed)
    yield _granularities(by_granularity, reasons, transformed.method)
    yield graph


def _sites(model: CachedModel, granularity: str) -> Table:
    sites = model.compiled.analysis.sites
    table = Table(title=f"{type(model.model).__name__}: {len(sites)} sites, granularity {granularity}", title_justify="left")
    for column in ("site", "input I", "output O"):
        table.add_column(column, no_wrap=True)
    for site in sites:
        table.add_row(escape(site.name), _dimensions(shape(site.I)), _dimensions(shape(site.output)))
    return table


def _rejections(model: CachedModel) -> RenderableType:
    rejected = model.compiled.analysis.rejected
    if not rejected:
        return Text("rejected: none")
    table = Table(title=f"{len(rejected)} rejected", title_justify="left")
    table.add_column("branch", no_wrap=True)
    table.add_column("why")
    for rejection in rejected:
        table.add_row(escape(rejection.where), escape(rejection.why))
    return table


def _dependence(model: CachedModel) -> Table:
    """What depends on what, and what `hoist=True` computes ahead of the steps."""
    names = {Level.INVARIANT: "conditioning", Level.TIMESTEP: "timestep", Level.LATENT: "latent"}
    table = Table(title="what depends on what, and what hoist=True computes ahead of the steps", title_justify="left")
    for column in ("on", "operations", "MFLOP", "weights", "ahead", "kept"):
        table.add_column(column, justify="left" if column == "on" else "right", no_wrap=True)
    for row in model.plan().dependence:
        ahead = str(row.hoistable) if row.level is not Level.LATENT else "-"
        kept_size = show.mib(row.kept_bytes) + (" a step" if row.level is Level.TIMESTEP else "") if row.kept_bytes else "-"
        table.add_row(names[row.level], str(row.operations), f"{row.flops / 1e6:,.2f}", show.mib(row.weight_bytes), ahead, kept_size)
    return table


def _state(model: CachedModel) -> Table:
    """State tensors by slot: the part of the name after the site."""
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for slot in model.plan().slots:
        key = (slot.name.rpartition(".")[2], _dimensions(slot.shape), str(slot.dtype).removeprefix("torch."))
        kinds.setdefault(key, []).append(slot.bytes)
    table = Table(title=f"state: {len(model.plan().slots)} tensors", title_justify="left")
    for column in ("slot", "shape", "dtype", "tensors", "together"):
        table.add_column(column, justify="right" if column in ("tensors", "together") else "left")
    for (slot_name, size, dtype), counts in kinds.items():
        table.add_row(escape(slot_name), size, dtype, str(len(counts)), show.mib(sum(counts)))
    return table


def _granularities(by_granularity: dict[str, CachedModel], reasons: dict[str, str], method: Method) -> Table:
    table = Table(title=f"state per context and cost by granularity, {method}", title_justify="left")
    more = [phase for phase in method.schedule.branches if phase not in (FULL.name, ESTIMATE.name)]
    for column in ("granularity", "sites", "bytes", "state", "in bfloat16", "in int8", "FLOPs share", *more):
        table.add_column(column, justify="left" if column == "granularity" else "right", no_wrap=column == "granularity")
    for name in sorted((*by_granularity, *reasons), key=lambda name: (*get_args(GranularityName), name).index(name)):
        if name in by_granularity:
            plan = by_granularity[name].plan()
            by_type = plan.alternatives.get(name, {})
            smaller = (show.mib(by_type[dtype]) if dtype in by_type else "-" for dtype in (torch.bfloat16, torch.int8))
            shares = (f"{plan.share(phase):.2%}" for phase in (ESTIMATE.name, *more))
            table.add_row(escape(name), *map(str, (len(plan.sites), plan.state_bytes, show.mib(plan.state_bytes), *smaller, *shares)))
        else:
            table.add_row(name, "none", escape(reasons[name]))
    return table


def _block_to_show(model: CachedModel, block: str | None) -> str:
    first = model.compiled.analysis.sites[0].name
    return block if block is not None else block_of(first) or first


def _module_path(block_path: str) -> str | None:
    """The module path to show; None for a site that is more than a block."""
    return None if block_path == "stack" or block_path.startswith("blocks[") else block_path


def _block_graph(model: CachedModel, block_path: str) -> Text:
    text = guarded_text(model.guarded, _module_path(block_path))
    if not text:
        sites = [site.name for site in model.compiled.analysis.sites]
        raise RFCError(f"--block {block_path}: no operation of the graph lies there; sites lie at {', '.join(sites[:4])} ...")
    return Text(f"guarded graph of {block_path}\n{text}")


def _dimensions(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size)) or "scalar"
