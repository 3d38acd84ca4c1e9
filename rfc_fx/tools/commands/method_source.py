"""The model of a command that writes a method file: what its options say is checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rfc_fx.tools.arguments import DTypeName, dtype_named, parse_classes
from rfc_fx.tools.output import check_writable
from rfc_fx.tools.pipeline.source import PipelineSource
from rfc_fx.tools.sources import DigitsSource, load_source


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of `calibrate` and `tune` that say what is drawn, as the parser hands them over."""

    classes: str | None
    prompts: list[str] | None
    first_seed: int
    seeds: int
    cfg: float | None
    dtype: DTypeName | None
    device: torch.device
    call: list[str] | None


def source_for_file(model: str, drawn: SourceOptions, out: Path) -> DigitsSource | PipelineSource:
    """Load the model once its options hold and the folder of `out` can be written; OptionError or LoadError otherwise."""
    labels = parse_classes(drawn.classes)
    check_writable(out.parent)
    return load_source(
        model,
        classes=labels,
        prompts=drawn.prompts or [],
        seeds=list(range(drawn.first_seed, drawn.first_seed + drawn.seeds)),
        cfg=drawn.cfg,
        dtype=None if drawn.dtype is None else dtype_named(drawn.dtype),
        device=drawn.device,
        assignments=drawn.call or [],
    )
