"""`rfc-fx run`: an engine draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rfc_export.commands.options import Engine
from rfc_export.drawing import draw_all, run_notes, run_summary, with_threshold
from rfc_export.engine_source import engine_source
from rfc_export.runtime import load
from rfc_fx.runtime.summary import mib
from rfc_fx.tools import options
from rfc_fx.tools.arguments import parse_classes
from rfc_fx.tools.output import check_writable, print_notes, print_paths, progress_bar, save_comparison


def run(
    engine: Engine,
    classes: Annotated[str | None, typer.Option(help="such as 0-9 or 3,7 (default: all)")] = None,
    seed: options.Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="seeds per class")] = 4,
    steps: options.Steps = 50,
    cfg: Annotated[float | None, typer.Option(help="guidance (default: as exported)")] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", "--tau", help="another threshold (default: as exported)")] = None,
    method_classes: options.MethodClasses = None,
    device: options.Device = options.CPU,
    out: options.Pictures = Path("out/run"),
) -> None:
    """Draw with an engine, without the model's Python."""
    labels = parse_classes(classes)
    loaded = load(engine, device=device, classes=method_classes or ())
    if threshold is not None:
        with_threshold(loaded, threshold)
    source = engine_source(str(engine), loaded, labels, list(range(seed, seed + seeds)), cfg)
    check_writable(out)
    console = Console()
    with progress_bar(console, "warming up", steps * len(source.batches) * seeds) as (advance, describe):
        drawn = draw_all(source, steps, advance, lambda: describe("drawing"))
    paths = save_comparison(out, drawn, run_summary(drawn, loaded))  # what was drawn is safe before anything is printed
    row = drawn.rows[0]
    timing = row.eager.timing
    console.print(
        f"{engine}: {len(source.groups) * seeds} samples, {drawn.nfc(row):.4g} of {steps} steps full, {timing.median_ms:.0f} ms per seed "
        f"({timing.min_ms:.0f}-{timing.max_ms:.0f}), state {mib(row.state_bytes)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    print_notes(console, run_notes(drawn, loaded))
    print_paths(paths)
    loaded.close()
