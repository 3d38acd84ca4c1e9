"""`rfc-fx tune`: solver, steps, full steps, weights and granularity by what is measured on a model, written to a method file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rfc_fx.io.method_file import write_method
from rfc_fx.tools import options
from rfc_fx.tools.arguments import MOST_SEED, OptionError, finite, parse_speedup
from rfc_fx.tools.commands.method_source import SourceOptions, source_for_file
from rfc_fx.tools.load import one_line
from rfc_fx.tools.output import progress_bar, whole_files
from rfc_fx.tools.terminal import note_progress, terminal
from rfc_fx.tools.tune import SamplerChoice, TuningGoal, scheduler_of, ways
from rfc_fx.tools.tune import tune as search
from rfc_fx.tools.tune.report import front_table, measured_of, save_front


def parse_time(text: str) -> float:
    """Seconds, such as 0.4s or 400ms; OptionError for any other text."""
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(ms|s)?\s*", text)
    seconds = finite("--time", 0)(found[1]) * (1e-3 if found[2] == "ms" else 1.0) if found else 0.0
    if not seconds > 0:
        raise OptionError(f"--time must be a time such as 0.4s or 400ms, got {text}")
    return seconds


def parse_steps(text: str) -> list[int]:
    """Numbers of steps, such as 50 or 28,50; OptionError for any other text."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,4}", part) and int(part) >= 2 for part in parts):
        raise OptionError(f"--steps must be numbers of at least 2 such as 50 or 28,50, got {text}")
    return list(dict.fromkeys(map(int, parts)))


def tune(
    model: options.SourceArgument = "digits",
    time: Annotated[str | None, typer.Option("--time", metavar="TIME", help="of a generation, such as 0.4s or 400ms")] = None,
    speedup: Annotated[
        float | None, typer.Option(parser=parse_speedup, metavar="NUMBER", help="of a generation over all steps in full")
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(parser=finite("--error", 0), metavar="NUMBER", help="largest ||x - x_ref|| / ||x_ref||, geometric mean over samples"),
    ] = None,
    steps: Annotated[str, typer.Option(metavar="NUMBERS", help="sampling steps to try, such as 50 or 28,50")] = "50",
    scheduler: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="class of diffusers to try in the place of the model's own, too; repeatable (default: none)"),
    ] = None,
    refine: Annotated[
        int,
        typer.Option(
            metavar="ROUNDS", min=0, max=20, help="refine full steps and weights by other seeds, about n^2 / 2 draws a round (rfc.refined)"
        ),
    ] = 0,
    cfg: options.Guidance = None,
    classes: options.Classes = None,
    prompt: options.Prompts = None,
    call: options.Call = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="first seed; take others than you will judge by")] = 1000,
    seeds: options.Seeds = 2,
    allow_pickle: options.AllowPickle = False,
    dtype: options.StoredDType = None,
    device: options.Device = options.CPU,
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True); without, times are those of single nodes")] = True,
    out: Annotated[Path, typer.Option(help="a .json file: accelerate, export and --method of generate take it")] = Path("out/tuned.json"),
) -> None:
    """Choose how to draw with a model within a time, by a speed-up or within an error, by what is measured on it."""
    goal = TuningGoal(seconds=None if time is None else parse_time(time), speedup=speedup, error=error)
    counts, kinds = parse_steps(steps), [scheduler_class(name) for name in scheduler or []]
    if out.suffix != ".json" or out.is_dir():
        raise OptionError(f"--out {out}: expected a file that ends in .json; its picture stands beside it")
    drawn = SourceOptions(classes=classes, prompts=prompt, first_seed=seed, seeds=seeds, cfg=cfg, dtype=dtype, device=device, call=call)
    source = source_for_file(model, drawn, out)
    own = scheduler_of(source)
    schedulers = [("", own), *((kind.__name__, made_like(own, kind)) for kind in kinds)]
    samplers = [SamplerChoice(name=name, scheduler=each, steps=count) for name, each in schedulers for count in counts]
    count = ways(samplers, goal)
    more = (", compiled first" if compile else "") + (f"; {refine} rounds of refining come on top" if refine else "")
    note_progress(f"tuning: up to about {count} ways to draw, {len(source.seeds) + 1} generations of {steps} steps each{more}")
    with progress_bar("tuning", count) as (advance, describe):

        def report(text: str) -> None:
            describe(f"tuning: {text}")
            if not text.startswith("refining"):
                advance()

        tuned = search(source, samplers, goal, rounds=refine, compile=compile, report=report)
    chosen = tuned.chosen
    settings = {"model": source.name, "seeds": source.seeds, "groups": len(source.groups), "compiled": compile}
    picture = out.with_suffix(".png").name
    with whole_files(out.parent) as folder:
        save_front(tuned, folder / picture)
        write_method(folder / out.name, chosen.method, settings | measured_of(chosen, tuned))
    terminal().print(front_table(tuned))
    typer.echo(
        f"chosen: {chosen.what}, {chosen.nfc} full of {chosen.sampler}: {chosen.seconds:.3g} s, "
        f"{tuned.points[0].seconds / chosen.seconds:.2f}x, error {chosen.error:.2g} over {len(chosen.samples)} samples\n{out}\n"
        f"{out.with_suffix('.png')}"
    )
    if chosen.sampler.name:
        typer.echo(f"draw with it: pipe.scheduler = diffusers.{chosen.sampler.name}.from_config(pipe.scheduler.config)")


def made_like(own: Any, kind: Any) -> Any:
    """A scheduler of that class with the model's settings; OptionError where it cannot be made of them or is not installed."""
    try:
        return kind.from_config(own.config)
    except Exception as error:  # each class raises what it likes of another's settings
        raise OptionError(f"--scheduler {kind.__name__}: cannot be made of the model's {type(own).__name__}: {one_line(error)}") from error


def scheduler_class(name: str) -> Any:
    """The class of diffusers of that name; OptionError for any other name."""
    import diffusers

    kind = getattr(diffusers, name, None) if re.fullmatch(r"\w+Scheduler", name) else None
    if kind is None:
        raise OptionError(f"--scheduler must be a class of diffusers such as DPMSolverMultistepScheduler, got {name}")
    return kind
