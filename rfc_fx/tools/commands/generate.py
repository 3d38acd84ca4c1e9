"""`rfc-fx generate`: the same samples by full computation and by every method, compared."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from rfc_fx.ir.config import Config
from rfc_fx.pipelines.accelerated import transformers_of
from rfc_fx.tools import options
from rfc_fx.tools.arguments import OptionError, device_here, dtype_named, new_config, parse_classes
from rfc_fx.tools.compare import compare
from rfc_fx.tools.compare_table import ComparisonProgress, comparison_table
from rfc_fx.tools.load import locate, model_kind
from rfc_fx.tools.named_methods import MethodArguments, best_known, check_dispatch, check_granularity, new_methods
from rfc_fx.tools.output import check_writable, print_notes, print_paths, progress_bar, save_comparison
from rfc_fx.tools.parallel import Degrees, group_of, is_first, split_sequence
from rfc_fx.tools.pipeline.call import CallOptions, pipeline_call
from rfc_fx.tools.pipeline.draw import Request, draw
from rfc_fx.tools.pipeline.draw_report import drawing_record, drawing_table, save_samples
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.pipeline.media_files import missing_encoder
from rfc_fx.tools.pipeline.methods import pipeline_methods
from rfc_fx.tools.pipeline.source import PipelineSource
from rfc_fx.tools.sources import DigitsSource, load_source
from rfc_fx.tools.summary_json import summary
from rfc_fx.tools.terminal import terminal
from rfc_fx.tools.variants import Settings


def generate(
    model: options.SourceOption = "digits",
    method: Annotated[
        list[str] | None, typer.Option(help=f"{options.METHOD}; repeatable (default: taylorseer, rfc, log-snr; of a pipeline log-snr)")
    ] = None,
    preset: options.Preset = None,
    tau: options.Tau = None,
    threshold: options.Threshold = None,
    order: options.Order = None,
    interval: options.Interval = None,
    nfc: options.NFC = None,
    speedup: options.Speedup = None,
    steps: options.OwnSteps = None,
    cfg: options.Guidance = None,
    classes: options.Classes = None,
    prompt: options.Prompts = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.Width = None,
    height: options.Height = None,
    frames: options.Frames = None,
    image: options.Images = None,
    call: options.Call = None,
    seed: options.Seed = 0,
    seeds: options.OwnSeeds = None,
    allow_pickle: options.AllowPickle = False,
    dtype: options.StoredDType = None,
    device: options.DeviceHere = None,
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True) on the graph side")] = True,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="how often every seed is drawn and timed")] = 1,
    granularity: options.Granularity = None,
    state_dtype: options.StateDType = None,
    state_budget: options.StateBudget = None,
    dispatch: options.DispatchOption = "host",
    decision: options.DecisionOption = "batch",
    hoist: Annotated[bool, typer.Option(help="compute ahead of the steps whatever does not depend on the latent (host dispatch)")] = False,
    regional: Annotated[bool, typer.Option(help="compile repeated blocks of the transformed model once (host dispatch)")] = True,
    fps: options.FramesPerSecond = None,
    parallel: options.Parallel = None,
    out: options.Pictures = Path("out/demo"),
) -> None:
    """Draw the same pictures, videos or sound by full computation and by every method, and compare."""
    config = new_config(
        granularity=granularity,
        state_dtype=state_dtype,
        state_budget=state_budget,
        dispatch=dispatch,
        decision=decision,
        hoist=hoist,
        regional=regional and dispatch == "host",
    )
    arguments = MethodArguments(
        tau=tau,
        threshold=threshold,
        order=order,
        interval=interval,
        nfc=nfc,
        speedup=speedup,
        num_steps=steps or 50,
        preset=preset,
        model=model,
    )
    request = CallOptions(
        prompts=prompt or [],
        classes=parse_classes(classes),
        negative_prompt=negative_prompt,
        cfg=cfg,
        width=width,
        height=height,
        frames=frames,
        images=image or [],
        steps=steps,
        assignments=call or [],
    )
    type_of_weights, device = None if dtype is None else dtype_named(dtype), device or device_here()
    if model_kind(locate(model)) == "digits":
        if parallel is not None:
            raise OptionError("--parallel: the digits model is drawn by one process; --parallel is for pipelines")
        settings = Settings(steps=steps or 50, rounds=rounds, compile=compile, config=config)
        _compared(model, method, arguments, settings, request, list(range(seed, seed + (seeds or 4))), type_of_weights, device, out)
    else:
        drawn = Request(methods={}, nfc=nfc, speedup=speedup, rounds=rounds, compile=compile, config=config)
        with nullcontext(device) if parallel is None else group_of(parallel, device) as own:
            _drawn(model, method, arguments, drawn, request, seed, seeds, type_of_weights, own, fps, parallel, out)


def _compared(
    model: str,
    names: list[str] | None,
    arguments: MethodArguments,
    settings: Settings,
    request: CallOptions,
    seeds: list[int],
    dtype: torch.dtype | None,
    device: torch.device,
    out: Path,
) -> None:
    """The digits model: every method as eager twin and compiled, timed in turns."""
    for option in request.by_option().keys() - {"--cfg"}:
        raise OptionError(f"{option}: this model draws classes; {option} is for pipelines")
    if arguments.speedup is not None:
        raise OptionError("--speedup: this model is drawn in a loop of this command; --speedup is for pipelines, pass --nfc")
    best, reason = ("", None) if names else best_known(arguments)
    names = names or ["taylorseer", "rfc", best]
    check_granularity(methods := new_methods(names, arguments), settings.config)  # refused before anything is loaded
    check_dispatch(methods, settings.config.dispatch)
    check_writable(out)
    source = load_source(
        model,
        classes=request.classes,
        prompts=list(request.prompts),
        seeds=seeds,
        cfg=request.cfg,
        dtype=dtype,
        device=device,
        assignments=request.assignments,
    )
    assert isinstance(source, DigitsSource)
    if settings.steps > (most := source.scheduler.config.num_train_timesteps):
        raise OptionError(f"--steps must be at most {most}, the steps the model was trained on, got {settings.steps}")
    methods = new_methods(names, replace(arguments, is_digits=True))
    console = terminal()
    if reason is not None:
        print_notes(console, [f"{best} for log-snr: {reason}"])
    with ComparisonProgress(settings, len(methods), len(source.seeds)) as progress:
        comparison = compare(source, methods, settings, progress)
    paths = save_comparison(out, comparison, summary(comparison))  # what was computed is safe before anything is printed
    console.print(comparison_table(comparison))
    print_notes(console, comparison.notes())
    print_paths(paths)


def _drawn(
    model: str,
    names: list[str] | None,
    arguments: MethodArguments,
    request: Request,
    call_options: CallOptions,
    seed: int,
    seeds: int | None,
    dtype: torch.dtype | None,
    device: torch.device,
    fps: float | None,
    parallel: Degrees | None,
    out: Path,
) -> None:
    """A pipeline: full computation, and every method with all denoisers accelerated."""
    folder = pipeline_folder(model)
    call = pipeline_call(folder, call_options)
    methods = pipeline_methods(names or ["log-snr"], replace(arguments, num_steps=call.steps))
    assert request.config is not None
    check_granularity(own := {name: method for name, method in methods.items() if method is not None}, request.config)
    check_dispatch(own, request.config.dispatch)
    check_writable(out)
    chosen = None if request.config == Config(regional=True, hoist=False) else request.config
    request = replace(request, methods=methods, config=chosen)
    numbers = list(range(seed, seed + (seeds or (4 if call.classes else 1))))
    source = PipelineSource(name=model, pipe=folder.load(dtype, device), call=call, seeds=numbers)
    if parallel is not None:
        for denoiser in transformers_of(source.pipe).values():
            split_sequence(denoiser, parallel)
    console = terminal()
    total = (1 + len(methods)) * len(numbers) * len(call.batches) * request.rounds * call.steps
    total += len(methods) * len(call.batches) * call.steps if request.speedup is not None else 0
    with progress_bar("drawing", total) as (advance, describe):
        drawing = draw(source, request, advance, describe)
    if not is_first():
        return
    rate = fps or call.value("frame_rate") or call.value("fps") or 16.0
    files: list[str] = []
    record = drawing_record(drawing, rate, files)
    paths = save_comparison(out, drawing.comparison, record, lambda folder: files.extend(save_samples(folder, drawing, rate)))
    console.print(drawing_table(drawing))
    missing = missing_encoder([drawn.media for rows in drawing.drawn.values() for row in rows for drawn in row])
    print_notes(console, [*drawing.notes(), *([] if missing is None else [missing])])
    print_paths(paths)
