"""A bench of a pipeline as a table and as a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from rfc_fx.tools.pipeline.bench import PROTOCOL, PipelineBench, PipelineVariant, Spread, spread
from rfc_fx.tools.pipeline.draw_report import shown
from rfc_fx.tools.summary_json import plain, versions


def bench_table(of: PipelineBench) -> Table:
    """A row for each variant."""
    source = of.source
    title = escape(f"{source.name}: {type(source.pipe).__name__}, {of.variants[0].steps} steps, {of.method}")
    caption = (
        f"ms of a whole call: median of {len(of.variants[0].times_ms)} in turns, below it the smallest and the largest, as of the error. "
        "x: how many times faster. error: ||x - x_full|| / ||x_full|| to eager. peak: of the process, or of CUDA."
    )
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", "full\nsteps", "call\nms", "x\neager", "x com-\npiled", "error", "state\nMiB", "peak\nMiB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for variant in of.variants:
        table.add_row(*_cells(of, variant))
    return table


def _cells(of: PipelineBench, variant: PipelineVariant) -> list[str]:
    if variant.failure is not None:
        return [variant.name, *["-"] * 7]
    ratios = ["-" if (ratio := of.speedup(variant, over)) is None else f"{ratio:.2f}" for over in ("eager", "compiled")]
    error = "-" if variant.name == "eager" else _cell(spread(variant.errors), lambda value: f"{value:.2g}")
    peak = "-" if variant.peak_bytes is None else f"{variant.peak_bytes / 2**20:.0f}"
    time = _cell(spread(variant.times_ms), lambda value: f"{value:.0f}")
    return [variant.name, f"{variant.full_steps:.4g}", time, *ratios, error, f"{variant.state_bytes / 2**20:.1f}", peak]


def _cell(values: Spread, text: Callable[[float], str]) -> str:
    return f"{text(values.median)}\n{text(values.least)}-{text(values.most)}"


def bench_record(of: PipelineBench) -> dict[str, Any]:
    """Everything measured, with units in the names."""
    source = of.source
    weights = next(source.model.parameters())
    return {
        "settings": {
            "model": source.name,
            "pipeline": type(source.pipe).__name__,
            "groups": source.groups,
            "call": {name: shown(value) for name, value in source.call.arguments.items()},
            "steps": of.variants[0].steps,
            "rounds": of.rounds,
            "method": str(of.method),
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": str(weights.device),
        },
        "protocol": PROTOCOL,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "graphs_compiled_while_counting": of.graphs_compiled_while_counting,
        "notes": of.notes(),
        "variants": {variant.name: _entry(of, variant) for variant in of.variants},
    }


def _entry(of: PipelineBench, variant: PipelineVariant) -> dict[str, Any]:
    if variant.failure is not None:
        return {"failure": variant.failure}
    return {
        "full_steps": variant.full_steps,
        "steps": variant.steps,
        "call_ms": spread(variant.times_ms)._asdict(),
        "calls_ms": variant.times_ms,
        "first_call_with_compilation_s": variant.first_s,
        "speedup_over_eager": of.speedup(variant, "eager"),
        "speedup_over_compiled": of.speedup(variant, "compiled"),
        "error": {key: plain(value) for key, value in spread(variant.errors)._asdict().items()},
        "state_mib": variant.state_bytes / 2**20,
        "peak_mib": None if variant.peak_bytes is None else variant.peak_bytes / 2**20,
    }
