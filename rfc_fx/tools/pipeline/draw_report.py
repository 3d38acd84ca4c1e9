"""A drawing as files, as a table and as a record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from rfc_fx.tools import pictures
from rfc_fx.tools.pipeline.draw import Drawing, seconds
from rfc_fx.tools.pipeline.media import sampling_rate
from rfc_fx.tools.pipeline.media_files import save_media
from rfc_fx.tools.summary_json import decisions, plain, versions
from rfc_fx.tools.variants import FULL


def save_samples(folder: Path, of: Drawing, fps: float) -> list[str]:
    """Write every sample to a file of its own; the names."""
    rate = sampling_rate(of.source.pipe)
    written: list[Path] = []
    for method, rows in of.drawn.items():
        for seed, batches in zip(of.source.seeds, rows, strict=True):
            stems = _stems(of, method, seed)
            for drawn in batches:
                own = [next(stems) for _ in drawn.media.samples]
                written += save_media(folder, own, drawn.media, fps, rate)
    return [path.name for path in written]


def _stems(of: Drawing, method: str, seed: int) -> Iterator[str]:
    """Names of a seed's samples: the method, the class or the number of the prompt, the seed."""
    name = re.sub(r"[^\w.-]+", "-", Path(method).stem)
    call = of.source.call
    groups = [f"class{label}-" for label in call.classes] or [f"prompt{i}-" for i in range(1, len(call.prompts) + 1)]
    for group in groups if len(groups) > 1 or call.classes else [""]:
        yield f"{name}-{group}seed{seed}"


def drawing_table(of: Drawing) -> Table:
    """A row for each method."""
    comparison = of.comparison
    count = len(of.source.groups) * len(of.source.seeds)
    title = escape(
        f"{of.source.name}: {type(of.source.pipe).__name__}, {count} sample{'s' if count > 1 else ''}, {comparison.settings.steps} steps"
    )
    caption = (
        "seconds of a call of the pipeline: the first, with capture and compilation, and the median of the later ones. PSNR of the "
        "samples, data range 2, and error ||x - x_full|| / ||x_full|| of the final latents: both against eager full computation."
    )
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("method", "full\nsteps", "first\ns", "then\ns", "PSNR\ndB", "error", "state\nMiB"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in comparison.rows:
        first, later = seconds(row.eager)
        name = FULL if row.method == FULL else pictures.label_of(row.method)
        error = "-" if row.method == FULL else f"{median(of.errors[row.method]):.2g}"
        then = "-" if later is None else f"{later:.2f}"
        table.add_row(name, comparison.nfc_text(row), f"{first:.2f}", then, f"{row.psnr_db:.1f}", error, f"{row.state_bytes / 2**20:.1f}")
    return table


def drawing_record(of: Drawing, fps: float, files: list[str]) -> dict[str, Any]:
    """Everything measured, with units in the names."""
    comparison, call = of.comparison, of.source.call
    weights = next(of.source.model.parameters())
    return {
        "settings": {
            "model": of.source.name,
            "pipeline": type(of.source.pipe).__name__,
            "model_class": type(of.source.model).__name__,
            "groups": of.source.groups,
            "seeds": of.source.seeds,
            "samples": len(of.source.groups) * len(of.source.seeds),
            "call": {name: shown(value) for name, value in call.arguments.items()},
            "cfg": of.source.cfg,
            "steps": comparison.settings.steps,
            "rounds": of.request.rounds,
            "compile": of.request.compile,
            "config": None if of.request.config is None else of.request.config.as_dict(),
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": str(weights.device),
            "fps": fps,
        },
        "protocol": "seconds of a call of the pipeline, one call a prompt (one for all classes); psnr and error against full, eager",
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "notes": of.notes(),
        "files": files,
        "methods": {row.method: _entry(of, row) for row in comparison.rows},
    }


def _entry(of: Drawing, row: Any) -> dict[str, Any]:
    first, later = seconds(row.eager)
    entry = decisions(of.comparison, row) | {
        "contexts": [list(contexts) for contexts in row.eager.records.values()],
        "first_s": first,
        "median_later_s": later,
        "times_s": [ms / 1e3 for ms in row.eager.times_ms],
        "psnr_db": row.psnr_db if isfinite(row.psnr_db) else str(row.psnr_db),
        "error": median(of.errors[row.method]),
        "errors": of.errors[row.method],
        "state_mib": row.state_bytes / 2**20,
    }
    return {key: plain(value) for key, value in entry.items()}


def shown(value: Any) -> Any:
    """An argument as JSON has it: pictures and tensors by what they are."""
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    if isinstance(value, dict):
        return {str(key): shown(each) for key, each in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    size = tuple(getattr(value, "shape", None) or getattr(value, "size", None) or ())
    return f"{type(value).__name__} {size}"
