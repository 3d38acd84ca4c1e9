"""`rfc-fx generate`: the same samples with every method, eager and compiled, timed and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rfc_fx.tools import options
from rfc_fx.tools.arguments import OptionError, dtype_named, new_config, parse_classes
from rfc_fx.tools.compare import compare
from rfc_fx.tools.compare_table import ComparisonProgress, comparison_table
from rfc_fx.tools.named_methods import MethodArguments, best_known, check_dispatch, check_granularity, new_methods
from rfc_fx.tools.output import check_writable, print_notes, save_comparison
from rfc_fx.tools.sources import DigitsSource, load_source
from rfc_fx.tools.summary_json import summary
from rfc_fx.tools.variants import Settings


def generate(
    model: options.SourceOption = "digits",
    method: Annotated[list[str] | None, typer.Option(help=f"{options.METHOD}; repeatable (default: taylorseer, rfc, log-snr)")] = None,
    preset: options.Preset = None,
    tau: options.Tau = None,
    threshold: options.Threshold = None,
    order: options.Order = None,
    interval: options.Interval = None,
    nfc: options.NFC = None,
    steps: options.Steps = 50,
    cfg: options.Guidance = None,
    classes: options.Classes = None,
    prompt: options.Prompts = None,
    seed: options.Seed = 0,
    seeds: options.Seeds = 4,
    dtype: options.DType = "float32",
    device: options.Device = options.CPU,
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True) on the graph side")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="how often every seed is drawn and timed")] = 1,
    granularity: options.Granularity = None,
    state_dtype: options.StateDType = None,
    state_budget: options.StateBudget = None,
    dispatch: options.DispatchOption = "host",
    decision: options.DecisionOption = "batch",
    hoist: Annotated[bool, typer.Option(help="compute ahead of the steps whatever does not depend on the latent (host dispatch)")] = False,
    regional: Annotated[bool, typer.Option(help="compile repeated blocks of the transformed model once (host dispatch)")] = True,
    out: options.Pictures = Path("out/demo"),
) -> None:
    """Draw the same samples with every method, eager and compiled; time them in turns and compare."""
    config = new_config(
        granularity=granularity,
        state_dtype=state_dtype,
        state_budget=state_budget,
        dispatch=dispatch,
        decision=decision,
        hoist=hoist,
        regional=regional and dispatch == "host",
    )
    settings = Settings(steps=steps, rounds=rounds, compile=compile, config=config)
    arguments = MethodArguments(
        tau=tau, threshold=threshold, order=order, interval=interval, nfc=nfc, num_steps=steps, preset=preset, model=model
    )
    best, reason = ("", None) if method else best_known(arguments)
    names = method or ["taylorseer", "rfc", best]
    methods = new_methods(names, arguments)  # refused before anything is loaded
    check_granularity(methods, config)
    check_dispatch(methods, dispatch)
    labels = parse_classes(classes)
    source = load_source(
        model,
        classes=labels,
        prompts=prompt or [],
        seeds=list(range(seed, seed + seeds)),
        cfg=cfg,
        dtype=dtype_named(dtype),
        device=device,
    )
    if isinstance(source, DigitsSource):
        arguments = replace(arguments, is_digits=True)
        if steps > (most := source.scheduler.config.num_train_timesteps):
            raise OptionError(f"--steps must be at most {most}, the steps the model was trained on, got {steps}")
    methods = new_methods(names, arguments)
    console = Console()
    check_writable(out)  # before minutes of work
    if reason is not None:
        print_notes(console, [f"{best} for log-snr: {reason}"])
    with ComparisonProgress(console, settings, len(methods), len(source.seeds)) as progress:
        comparison = compare(source, methods, settings, progress)
    console.print(comparison_table(comparison))
    print_notes(console, comparison.notes())
    save_comparison(out, comparison, summary(comparison))
