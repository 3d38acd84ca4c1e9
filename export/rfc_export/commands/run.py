"""`rfc-fx run`: an engine draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rfc_export.commands.options import Engine, Trust, Trusted
from rfc_export.drawing import draw_all, run_notes, run_summary, with_threshold
from rfc_export.engine_source import EngineSource, engine_source
from rfc_export.pipeline_source import EngineInPipeline, engine_in_pipeline, whole_pipeline
from rfc_export.runtime import load
from rfc_export.whole import is_whole
from rfc_fx.runtime.summary import mib
from rfc_fx.tools import options
from rfc_fx.tools.arguments import MOST_SEEDS, OptionError, finite, parse_classes
from rfc_fx.tools.arguments import threshold as parse_threshold
from rfc_fx.tools.load import locate, model_kind
from rfc_fx.tools.output import check_writable, print_notes, print_paths, progress_bar, save_comparison
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.tools.terminal import terminal


def run(
    engine: Engine,
    classes: Annotated[str | None, typer.Option(help="such as 0-9 or 3,7 (default: all)")] = None,
    model: Annotated[
        str | None, typer.Option(help="pipeline in which the engine draws: emoji, a folder or a Hub id (not for digits)")
    ] = None,
    prompt: options.Prompts = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.Width = None,
    height: options.Height = None,
    frames: options.Frames = None,
    image: options.Images = None,
    allow_pickle: options.AllowPickle = False,
    call: options.Call = None,
    seed: options.Seed = 0,
    seeds: Annotated[int | None, typer.Option(min=1, max=MOST_SEEDS, help="seeds per class or prompt (default: 4, with --model 1)")] = None,
    steps: options.Steps = 50,
    cfg: Annotated[float | None, typer.Option(parser=finite("--cfg"), metavar="NUMBER", help="guidance (default: as exported)")] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", "--tau", parser=parse_threshold, metavar="NUMBER", help="another threshold (default: as exported)"),
    ] = None,
    method_classes: options.MethodClasses = None,
    trusted: Trusted = None,
    trust: Trust = False,
    device: options.Device = options.CPU,
    out: options.Pictures = Path("out/run"),
) -> None:
    """Draw with an engine, without the model's Python."""
    labels = parse_classes(classes)
    said = CallOptions(
        prompts=prompt or [],
        classes=labels,
        negative_prompt=negative_prompt,
        cfg=cfg,
        width=width,
        height=height,
        frames=frames,
        images=image or [],
        steps=steps,
        assignments=call or [],
    )
    whole = is_whole(engine)
    if whole and model is not None:
        raise OptionError(f"--model: {engine} is a whole pipeline, which needs no other; leave it out")
    if whole:
        model_kind(locate(str(engine)))
    elif model is None:
        for option, value in {"--prompt": prompt, **said.by_option(), "--call": call}.items():
            if value and option != "--cfg":
                raise OptionError(f"{option}: is for pipelines; pass --model too")
    else:
        model_kind(locate(model))
    check_writable(out)  # all that can be refused is refused before anything is loaded
    numbers = list(range(seed, seed + (seeds or (1 if whole or model is not None else 4))))
    settings: dict[str, Any] = {"device": device, "classes": method_classes or (), "trusted": trusted, "trust": trust}
    source: EngineSource | EngineInPipeline
    if whole:
        source = whole_pipeline(engine, said, numbers, lambda folder: folder.load(**settings))
        loaded = source.model
    else:
        loaded = load(engine, **settings)
        if model is None:
            source = engine_source(str(engine), loaded, labels, numbers, cfg)
        else:
            source = engine_in_pipeline(str(engine), loaded, model, said, numbers)
    if threshold is not None:
        with_threshold(loaded, threshold)
    console = terminal()
    with progress_bar("warming up", steps * len(source.batches) * len(numbers)) as (advance, describe):
        drawn = draw_all(source, steps, advance, lambda: describe("drawing"))
    paths = save_comparison(out, drawn, run_summary(drawn, loaded))  # what was drawn is safe before anything is printed
    row = drawn.rows[0]
    timing = row.eager.timing
    count = len(source.groups) * len(numbers)
    console.print(
        f"{engine}: {count} samples, {drawn.nfc(row):.4g} of {steps} steps full, {timing.median_ms:.0f} ms per seed "
        f"({timing.min_ms:.0f}-{timing.max_ms:.0f}), state {mib(row.state_bytes)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    print_notes(console, run_notes(drawn, loaded))
    print_paths(paths)
    loaded.close()
