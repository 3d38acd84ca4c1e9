"""The model of a command that writes a method file: what its options say is checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rfc_fx.pipelines.accelerated import transformers_of
from rfc_fx.tools.arguments import DTypeName, OptionError, dtype_named, parse_classes
from rfc_fx.tools.output import check_writable
from rfc_fx.tools.pipeline.source import PipelineSource, refusing
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
    """Load the model once its options hold and the folder of `out` can be written, and try a pipeline's call.

    Raises OptionError or LoadError for options that do not hold, and for what the pipeline itself refuses within two steps.
    """
    labels = parse_classes(drawn.classes)
    check_writable(out.parent)
    source = load_source(
        model,
        classes=labels,
        prompts=drawn.prompts or [],
        seeds=list(range(drawn.first_seed, drawn.first_seed + drawn.seeds)),
        cfg=drawn.cfg,
        dtype=None if drawn.dtype is None else dtype_named(drawn.dtype),
        device=drawn.device,
        assignments=drawn.call or [],
    )
    if isinstance(source, PipelineSource):
        if len(names := list(transformers_of(source.pipe))) > 1:
            raise OptionError(
                f"{model}: has {len(names)} denoisers ({', '.join(names)}), and a method file is for the steps of one; draw with generate "
                "--nfc or --speedup, where log-snr places the full steps of each"
            )
        with refusing(source):  # what the pipeline says of its arguments
            source.draw(source.model, source.seeds[0], 2, lambda: None)
    return source
