"""The command rfc-fx: `generate` compares methods on a model, `inspect` shows the transformation, `doctor` checks the machine."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

import rfc
from rfc_fx.errors import RFCError
from rfc_fx.io.preset import write_preset
from rfc_fx.ir.config import Decision, Dispatch
from rfc_fx.tools import pictures
from rfc_fx.tools.arguments import (
    DTYPES,
    HELP,
    METHODS,
    STATE_DTYPES,
    MethodArguments,
    OptionError,
    at_least,
    best_known,
    check_dispatch,
    check_granularity,
    new_method,
    new_methods,
    parse_classes,
    parse_config,
    parse_device,
    parse_dtype,
)
from rfc_fx.tools.calibrate import LISTS, Calibrated, Goal, calibrate, check_calibratable, named
from rfc_fx.tools.compare import FULL, Comparison, Row, Settings, Timing, Variant, compare
from rfc_fx.tools.doctor import examine
from rfc_fx.tools.inspect import inspect_model, load_with_inputs
from rfc_fx.tools.load import DigitsSource, load_source, one_line
from rfc_fx.tools.summary_json import installed_version, summary

NAMES = ", ".join(METHODS)


METHOD_HELP = f"{NAMES}, a .json file of calibrate, or package.module:name; repeatable (default: taylorseer, rfc, log-snr)"


class _OneLineErrors(TyperGroup):
    """Errors that are the user's are one line on stderr and exit code 2; all others are defects and keep their traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except RFCError as error:
            _fail(one_line(error, width=600))
        except typer.Abort:
            raise SystemExit(130) from None
        except Exception as error:
            if not hasattr(error, "format_message"):  # the parser's own errors have it; their base class is not public
                raise
            _fail(one_line(Exception(error.format_message())))
        if standalone_mode:
            raise SystemExit(code if isinstance(code, int) else 0)
        return code


def _fail(text: str) -> NoReturn:
    typer.echo(f"rfc-fx: error: {text}", err=True)
    raise SystemExit(2)


app = typer.Typer(
    cls=_OneLineErrors, add_completion=False, pretty_exceptions_enable=False, help="Feature caching for diffusion transformers, compiled."
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rfc-fx {installed_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="digits, a folder in diffusers' layout (digits or pipeline), or a Hub id")] = "digits",
    method: Annotated[list[str] | None, typer.Option(help=METHOD_HELP)] = None,
    preset: Annotated[str | None, typer.Option(help=HELP["preset"])] = None,
    tau: Annotated[float | None, typer.Option(help=HELP["tau"])] = None,
    threshold: Annotated[float | None, typer.Option(help=HELP["threshold"])] = None,
    order: Annotated[int | None, typer.Option(help=HELP["order"])] = None,
    interval: Annotated[int | None, typer.Option(help=HELP["interval"])] = None,
    nfc: Annotated[int | None, typer.Option(help=HELP["nfc"])] = None,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    cfg: Annotated[float | None, typer.Option(help="guidance (default: 1.5 for digits, else the pipeline's own)")] = None,
    classes: Annotated[str | None, typer.Option(help="such as 0-9 or 3,7 (default: 0-9 for digits, else 0-3)")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="for text pipelines; repeatable")] = None,
    seed: Annotated[int, typer.Option(help="first seed")] = 0,
    seeds: Annotated[int, typer.Option(help="seeds per class or prompt")] = 4,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True) on the graph side")] = True,
    rounds: Annotated[int, typer.Option(help="how often every seed is drawn and timed")] = 1,
    granularity: Annotated[str | None, typer.Option(help=HELP["granularity"])] = None,
    state_dtype: Annotated[str | None, typer.Option(help=f"of the differences: {', '.join(STATE_DTYPES)}")] = None,
    state_budget: Annotated[str | None, typer.Option(help="most bytes of state a context may take, such as 2GiB")] = None,
    dispatch: Annotated[str, typer.Option(help=", ".join(get_args(Dispatch)))] = "host",
    decision: Annotated[str, typer.Option(help=", ".join(get_args(Decision)))] = "batch",
    hoist: Annotated[bool, typer.Option(help="compute ahead of the steps what needs no latent (host dispatch)")] = False,
    regional: Annotated[bool, typer.Option(help="compile repeated blocks of the transformed model once (host dispatch)")] = True,
    out: Annotated[Path, typer.Option(help="folder for images.png, schedule.png and summary.json")] = Path("out/demo"),
) -> None:
    """Draw the same samples with every method, eager and compiled; time them in turns and compare."""
    settings = Settings(
        steps=at_least("--steps", steps, 1),
        rounds=at_least("--rounds", rounds, 1),
        compile=compile,
        config=parse_config(
            granularity=granularity,
            state_dtype=state_dtype,
            state_budget=state_budget,
            dispatch=dispatch,
            decision=decision,
            hoist=hoist,
            regional=regional and dispatch != "cond",
        ),
    )
    first, count = at_least("--seed", seed, 0), at_least("--seeds", seeds, 1)
    asked = MethodArguments(
        tau=tau, threshold=threshold, order=order, interval=interval, nfc=nfc, num_steps=steps, preset=preset, model=model
    )
    best, why = ("", None) if method else best_known(asked)
    names = method or ["taylorseer", "rfc", best]
    methods = new_methods(names, asked)  # before anything is loaded
    check_granularity(methods, settings.config)
    check_dispatch(methods, dispatch)
    source = load_source(
        model,
        classes=parse_classes(classes),
        prompts=prompt or [],
        seeds=list(range(first, first + count)),
        cfg=cfg,
        dtype=parse_dtype(dtype),
        device=parse_device(device),
    )
    if isinstance(source, DigitsSource):
        asked = replace(asked, is_digits=True)
        if steps > (most := source.scheduler.config.num_train_timesteps):
            raise OptionError(f"--steps must be at most {most}, the steps the model was trained on, got {steps}")
    methods = new_methods(names, asked)
    console = Console()
    writable(out)  # before minutes of work
    if why is not None:
        console.print(f"note: {best} for log-snr: {why}", style="yellow", markup=False, highlight=False)
    with _Bars(console, settings, len(methods), len(source.seeds)) as bars:
        compared = compare(source, methods, settings, bars)
    console.print(table(compared))
    for note in compared.notes():
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    with whole_files(out) as folder:
        pictures.save_images(compared, folder / "images.png")
        pictures.save_schedule(compared, folder / "schedule.png")
        (folder / "summary.json").write_text(json.dumps(summary(compared), indent=1, allow_nan=False) + "\n")
    for name in ("images.png", "schedule.png", "summary.json"):
        typer.echo(out / name)


def writable(out: Path) -> None:
    """OptionError where the folder cannot be made or written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OptionError(f"--out {out}: cannot be written: {error.strerror or error}; pass another folder") from error


@contextmanager
def whole_files(out: Path) -> Iterator[Path]:
    """A folder whose files move to `out` when all of them are there; a run that fails leaves `out` as it was."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir()):
            os.replace(path, out / path.name)


class _Bars:
    """Two progress bars: warming up, which is where compilation happens, and the counted generations."""

    def __init__(self, console: Console, settings: Settings, methods: int, seeds: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, refresh_per_second=4)
        self.settings = settings
        variants = 2 * methods + 1 + settings.compile
        self.warm: TaskID = self.bar.add_task("warming up", total=variants)
        self.runs: TaskID = self.bar.add_task("counted generations", total=variants * seeds * settings.rounds * settings.steps, start=False)
        self.warmed = 0

    def __enter__(self) -> _Bars:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def warming(self, variant: Variant) -> None:
        doing = "compiling" if self.settings.compile and variant.side == "graph" else "warming up"
        self.bar.update(self.warm, completed=self.warmed, description=f"{doing} {pictures.label_of(variant.method)}, {self._side(variant)}")
        self.warmed += 1

    def running(self, variant: Variant, round: int, seed: int) -> None:
        self.bar.update(self.warm, completed=self.warmed, description="warmed up")
        self.bar.start_task(self.runs)
        where = f"seed {seed}" if self.settings.rounds == 1 else f"round {round + 1}, seed {seed}"
        self.bar.update(self.runs, description=f"{where}: {pictures.label_of(variant.method)}, {self._side(variant)}")

    def step(self) -> None:
        self.bar.advance(self.runs)

    def _side(self, variant: Variant) -> str:
        if variant.side == "eager":
            return "eager" if variant.method == FULL else "eager twin"
        return "compiled" if self.settings.compile else "transformed"


def table(of: Comparison) -> Table:
    """The comparison as people read it."""
    settings = of.settings
    graph = "compiled" if settings.compile else "transformed"
    groups, seeds = len(of.source.groups), len(of.source.seeds)
    title = f"{of.source.name}: {groups * seeds} samples, {seeds} generations of {groups} in one batch, {settings.steps} steps"
    shown = Table(title=title, title_justify="left", caption_justify="left", caption=_caption(of), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("method", "NFC", "eager\nms", f"{graph}\nms", "x comp.\nfull", "x eager\ntwin", "PSNR\ndB", "state\nMiB"):
        shown.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in of.rows:
        shown.add_row(*_cells(of, row))
    return shown


def _cells(of: Comparison, row: Row) -> list[str]:
    ratios = of.speedups(row)
    against = [next((f"{v:.2f}" for k, v in ratios.items() if k.endswith(end)), "-") for end in ("vs_compiled_full", "vs_eager_twin")]
    times = [span(row.eager.timing), "-" if row.graph is None else span(row.graph.timing)]
    name = FULL if row.method == FULL else pictures.label_of(row.method)  # 80 columns have to do
    return [name, f"{of.nfc(row):.4g}", *times, *against, f"{row.psnr_db:.1f}", f"{row.state_bytes / 2**20:.1f}"]


def span(timing: Timing) -> str:
    """Median, and the smallest and the largest below it."""
    return f"{timing.median_ms:.0f}\n{timing.min_ms:.0f}-{timing.max_ms:.0f}"


def _caption(of: Comparison) -> str:
    now = "compiled cached" if of.settings.compile else "transformed, not compiled"
    return (
        f"ms per generation: median of {of.settings.rounds * len(of.source.seeds)} in turns, below it the smallest and the largest. "
        "eager: the model itself for full computation (full), the twin (rfc.eager.model) for a method. "
        f"x comp. full, x eager twin: how many times faster the {now} model is than torch.compile(model) and than the eager twin. "
        "PSNR against the eager full computation of the same seeds, data range 2."
    )


@app.command("calibrate")
def calibrate_command(
    model: Annotated[str, typer.Argument(help="digits, a folder in diffusers' layout (digits or pipeline), or a Hub id")] = "digits",
    nfc: Annotated[float | None, typer.Option(help="wanted mean number of full computations of a generation")] = None,
    psnr: Annotated[float | None, typer.Option(help="smallest PSNR in dB against full computation")] = None,
    max_error: Annotated[float | None, typer.Option(help="largest ||x - x_full|| / ||x_full||, geometric mean over samples")] = None,
    method: Annotated[str, typer.Option(help=f"log-snr, chebyshev, or one with a threshold, of {NAMES}")] = "log-snr",
    order: Annotated[int | None, typer.Option(help=HELP["order"])] = None,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    cfg: Annotated[float | None, typer.Option(help="guidance (default: 1.5 for digits, else the pipeline's own)")] = None,
    classes: Annotated[str | None, typer.Option(help="such as 0-9 or 3,7 (default: 0-9 for digits, else 0-3)")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="for text pipelines; repeatable")] = None,
    seed: Annotated[int, typer.Option(help="first seed; take others than you will judge by")] = 1000,
    seeds: Annotated[int, typer.Option(help="seeds per class or prompt")] = 4,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True)")] = False,
    lists: Annotated[int, typer.Option(help="log-snr, chebyshev: at most so many lists of full steps are drawn")] = LISTS,
    out: Annotated[Path, typer.Option(help="a .json file: --method of generate and transform take it")] = Path("out/preset.json"),
) -> None:
    """Find a method's full steps or threshold for a number of full computations, or for most savings within a bound on quality."""
    goal = Goal(nfc=nfc, psnr=psnr, max_error=max_error)
    asked = MethodArguments(order=order, num_steps=at_least("--steps", steps, 1), model=model)
    chosen = new_method(method, asked)
    check_calibratable(chosen)  # before anything is loaded
    at_least("--lists", lists, 1)
    first, count = at_least("--seed", seed, 0), at_least("--seeds", seeds, 1)
    writable(out.parent)
    source = load_source(
        model,
        classes=parse_classes(classes),
        prompts=prompt or [],
        seeds=list(range(first, first + count)),
        cfg=cfg,
        dtype=parse_dtype(dtype),
        device=parse_device(device),
    )
    with Console().status("calibrating") as status:
        say: Callable[[str], None] = lambda what: status.update(f"calibrating: {what}")  # noqa: E731
        found = calibrate(source, chosen, goal, steps, compile=compile, lists=lists, told=say)
    measured = found.measured
    settings = {"model": source.name, "steps": steps, "seeds": source.seeds, "groups": len(source.groups), "asked": goal.text}
    reached = {"nfc": measured.nfc, "psnr_db": measured.psnr_db if isfinite(measured.psnr_db) else None, "error": measured.error}
    write_preset(out, found.method, settings | {"threshold": found.threshold, **reached})
    typer.echo(
        f"{method}: {_found(found)} gives NFC {measured.nfc:.2f} of {steps}, PSNR {measured.psnr_db:.1f} dB, error "
        f"{measured.error:.2g} over {len(source.seeds)} x {len(source.groups)} samples ({found.tried} tried)\n{out}"
    )


def _found(found: Calibrated) -> str:
    """What was found: a threshold, or a forecast and its full steps."""
    schedule = found.method.schedule
    if found.threshold is not None:
        return f"threshold {found.threshold:.4g}"
    assert isinstance(schedule, rfc.Placed)
    return f"{named(found.method.estimator)}, full steps {', '.join(map(str, schedule.full_steps))},"


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="digits, a folder in diffusers' layout (transformer or pipeline), or a Hub id")] = "digits",
    method: Annotated[str, typer.Option(help=NAMES)] = "rfc",
    preset: Annotated[str | None, typer.Option(help=HELP["preset"])] = None,
    order: Annotated[int | None, typer.Option(help=HELP["order"])] = None,
    granularity: Annotated[str | None, typer.Option(help=HELP["granularity"])] = None,
    state_dtype: Annotated[str | None, typer.Option(help=f"of the differences: {', '.join(STATE_DTYPES)}")] = None,
    state_budget: Annotated[str | None, typer.Option(help="most bytes of state a context may take, such as 2GiB")] = None,
    block: Annotated[str | None, typer.Option(help="print the graph of this module path, e.g. transformer_blocks.0")] = None,
    draw: Annotated[Path | None, typer.Option(help="draw that graph to a .svg, .png or .pdf file")] = None,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Print a model's sites, what was rejected and why, state and FLOPs, and the guarded graph of one block."""
    chosen = new_method(method, MethodArguments(order=order, preset=preset))
    config = parse_config(granularity=granularity, state_dtype=state_dtype, state_budget=state_budget)
    check_granularity({method: chosen}, config)
    transformer, inputs = load_with_inputs(model, parse_dtype(dtype), parse_device(device))
    console = Console(soft_wrap=True)
    for part in inspect_model(transformer, inputs, chosen, config, block, draw):
        console.print(part)


@app.command()
def doctor(device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu") -> None:
    """Check that torch.compile works here, and print the versions of what matters."""
    Console(soft_wrap=True).print(examine(parse_device(device)))


def main() -> None:
    """Entry point of the command rfc-fx."""
    for category in (FutureWarning, DeprecationWarning):  # libraries' notes to programmers
        warnings.simplefilter("ignore", category)
    app()


if __name__ == "__main__":
    main()
