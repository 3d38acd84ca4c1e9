"""The command rfc-fx with engines: `export` builds one, `run` draws with it, `verify` checks it, `bench` times it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rfc_export.artifact import check_place, opened, read_manifest
from rfc_export.backends import backend as backend_of
from rfc_export.bench import PROTOCOL, Timed, engine_variant, measure, model_variants
from rfc_export.drawing import draw_all, engine_source, exportable, is_shipped, run_notes, run_summary, sizes, with_threshold
from rfc_export.exporter import export as export_model
from rfc_export.methods import check_method
from rfc_export.runtime import Engine, load
from rfc_export.specs import BackendName
from rfc_export.verify import STEPS, Verdict, cached_like, checks, exported_from, parity_over, work
from rfc_fx.ir.config import Dispatch
from rfc_fx.runtime.summary import mib
from rfc_fx.tools import arguments as options
from rfc_fx.tools import pictures
from rfc_fx.tools.arguments import DTYPES, HELP, METHODS, STATE_DTYPES, MethodArguments, OptionError, at_least, known
from rfc_fx.tools.cli import app, span, whole_files, writable
from rfc_fx.tools.cli import main as run_app
from rfc_fx.tools.load import layout, locate
from rfc_fx.tools.summary_json import versions

FolderArgument = Annotated[Path, typer.Argument(help="what `rfc-fx export` wrote: a folder, or a .pt2 file")]
ClassOption = Annotated[
    list[str] | None, typer.Option("--class", help="class of the method that is not the package's, as package.module:name; repeatable")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]

# ---- export ----------------------------------------------------------------------------------------------------------


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="digits, a folder in diffusers' layout (transformer or pipeline), or a Hub id")],
    backend: Annotated[str, typer.Option(help=", ".join(get_args(BackendName)))],
    out: Annotated[Path, typer.Option(help="the engine's folder, or a file that ends in .pt2")],
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "rfc",
    preset: Annotated[str | None, typer.Option(help=HELP["preset"])] = None,
    tau: Annotated[float | None, typer.Option(help=HELP["tau"])] = None,
    threshold: Annotated[float | None, typer.Option(help=HELP["threshold"])] = None,
    order: Annotated[int | None, typer.Option(help=HELP["order"])] = None,
    interval: Annotated[int | None, typer.Option(help=HELP["interval"])] = None,
    nfc: Annotated[int | None, typer.Option(help=HELP["nfc"])] = None,
    steps: Annotated[int | None, typer.Option(help=f"of a generation, for {', '.join(options.taking('steps'))}")] = None,
    granularity: Annotated[str | None, typer.Option(help=HELP["sizes"])] = None,
    state_dtype: Annotated[str | None, typer.Option(help=f"of the differences: {', '.join(STATE_DTYPES)}")] = None,
    dispatch: Annotated[str, typer.Option(help=", ".join(get_args(Dispatch)))] = "host",
    hoist: Annotated[
        bool | None, typer.Option("--hoist/--no-hoist", help="compute ahead of the steps what needs no latent (default with host dispatch)")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="samples of a call; guidance doubles them (default: 10 for digits, else 1)")] = None,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    device: DeviceOption = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the engine that is there")] = False,
) -> None:
    """Transform a model, build its programs for a back end, and check the engine against the model."""
    wanted: Any = known("--backend", backend, get_args(BackendName))
    config = options.parse_config(granularity=granularity, state_dtype=state_dtype, dispatch=dispatch, hoist=hoist)
    at_least("--batch", 1 if batch is None else batch, 1)
    numbers, place = options.parse_dtype(dtype), options.parse_device(device)
    check_place(out, overwrite=overwrite)
    is_digits = layout(locate(model)) == "digits"
    asked = MethodArguments(
        tau=tau,
        threshold=threshold,
        order=order,
        interval=interval,
        nfc=nfc,
        num_steps=steps,
        preset=preset,
        model=model,
        is_digits=is_digits,
    )
    (chosen,) = options.new_methods([method], asked).values()
    options.check_granularity({method: chosen}, config)
    check_method(chosen, config.dispatch)
    backend_of(wanted).check(place)  # before anything is loaded
    found = exportable(model, numbers, place, batch)
    start = time.perf_counter()
    export_model(
        found.model,
        out,
        backend=wanted,
        example_inputs=found.inputs,
        method=chosen,
        config=config,
        sampler=found.sampler,
        overwrite=overwrite,
        report=lambda line: typer.echo(f"{time.perf_counter() - start:6.1f} s  {line}"),
    )
    typer.echo(f"{time.perf_counter() - start:6.1f} s  done: {out}")
    with opened(out) as folder:
        for name, count in sizes(folder, read_manifest(folder)).items():
            typer.echo(f"  {name:<24} {mib(count):>12}")
    if found.sampler is not None:
        typer.echo(f"draw with it:  rfc-fx run {out} --classes 3\ncheck it:      rfc-fx verify {out} --model {model}")
    else:
        typer.echo(f"use it:    pipe.transformer = rfc_export.load({str(out)!r})\ncheck it:  rfc-fx verify {out} --model {model}")


# ---- run -------------------------------------------------------------------------------------------------------------


@app.command()
def run(
    engine: FolderArgument,
    classes: Annotated[str | None, typer.Option(help="such as 0-9 or 3,7 (default: all)")] = None,
    seed: Annotated[int, typer.Option(help="first seed")] = 0,
    seeds: Annotated[int, typer.Option(help="seeds per class")] = 4,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    cfg: Annotated[float | None, typer.Option(help="guidance (default: as exported)")] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", "--tau", help="another threshold (default: as exported)")] = None,
    classes_from: ClassOption = None,
    device: DeviceOption = "cpu",
    out: Annotated[Path, typer.Option(help="folder for images.png, schedule.png and summary.json")] = Path("out/run"),
) -> None:
    """Draw with an engine, without the model's Python."""
    first, count = at_least("--seed", seed, 0), at_least("--seeds", seeds, 1)
    at_least("--steps", steps, 1)
    chosen = options.parse_classes(classes)
    loaded = load(engine, device=options.parse_device(device), classes=options.imported_classes(classes_from))
    if threshold is not None:
        with_threshold(loaded, threshold)
    source = engine_source(str(engine), loaded, chosen, list(range(first, first + count)), cfg)
    writable(out)
    console = Console()
    with _bar(console, "warming up", steps * len(source.batches) * count) as (tick, say):
        drawn = draw_all(source, steps, tick, lambda: say("drawing"))
    row = drawn.rows[0]
    timing = row.eager.timing
    console.print(
        f"{engine}: {len(source.groups) * count} samples, {drawn.nfc(row):.4g} of {steps} steps full, {timing.median_ms:.0f} ms per seed "
        f"({timing.min_ms:.0f}-{timing.max_ms:.0f}), state {mib(row.state_bytes)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for note in run_notes(drawn, loaded):
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    with whole_files(out) as folder:
        pictures.save_images(drawn, folder / "images.png")
        pictures.save_schedule(drawn, folder / "schedule.png")
        (folder / "summary.json").write_text(json.dumps(run_summary(drawn, loaded), indent=1, allow_nan=False) + "\n")
    for name in ("images.png", "schedule.png", "summary.json"):
        typer.echo(out / name)
    loaded.close()


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[tuple[Callable[[], object], Callable[[str], object]]]:
    """A progress bar: (one step on, another description)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task), lambda text: progress.update(task, description=text)


# ---- verify ----------------------------------------------------------------------------------------------------------


@app.command()
def verify(
    engine: FolderArgument,
    model: Annotated[str | None, typer.Option(help="what it was made from: a whole generation of both is compared")] = None,
    classes_from: ClassOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Check manifest, files, target and versions; with the model also every decision and output of a generation."""
    place = options.parse_device(device)
    classes = options.imported_classes(classes_from)
    for what, finding in checks(engine, place, classes):
        typer.echo(f"{what:<9} {finding}")
    if model is None:
        return
    loaded = load(engine, device=place, classes=classes)
    found = exported_from(model, loaded)
    cached = cached_like(loaded, found.model, found.inputs)
    verdict = parity_over(loaded, cached, work(str(engine), loaded, cached, found.inputs))
    loaded.close()
    typer.echo(f"{'parity':<9} {verdict.finding}", err=verdict.fault is not None)
    if verdict.fault is not None:
        raise typer.Exit(1)


# ---- bench -----------------------------------------------------------------------------------------------------------


@app.command()
def bench(
    engine: Annotated[list[Path], typer.Argument(help="one or more of what `rfc-fx export` wrote")],
    model: Annotated[str | None, typer.Option(help="what it was made from (default: digits, where it is that)")] = None,
    rounds: Annotated[int, typer.Option(help="counted generations of every variant")] = 5,
    steps: Annotated[int, typer.Option(help="steps of a generation")] = STEPS,
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True) on the CachedModel")] = True,
    classes_from: ClassOption = None,
    device: DeviceOption = "cpu",
    out: Annotated[Path | None, typer.Option(help="folder for bench.json")] = None,
) -> None:
    """Time engines beside the compiled CachedModel and the eager twin, in turns, and compare what they compute."""
    at_least("--rounds", rounds, 1)
    at_least("--steps", steps, 1)
    place = options.parse_device(device)
    if out is not None:
        writable(out)
    names, bytes_of = [str(path) for path in engine], []
    for path in engine:
        with opened(path) as folder:
            manifest = read_manifest(folder)
            bytes_of.append(sum(sizes(folder, manifest).values()))
            if model is None and is_shipped(folder, manifest):
                model = "digits"
    classes = options.imported_classes(classes_from)
    loaded = [load(path, device=place, classes=classes) for path in engine]
    first = loaded[0]
    _alike(names, loaded)
    variants = [engine_variant(_label(path, one, loaded), one, count) for path, one, count in zip(engine, loaded, bytes_of, strict=True)]
    if model is not None:
        found = exported_from(model, first)
        variants += model_variants(first, found.model, found.inputs, compile=compile)
    # without a model the first engine makes the calls
    reference = variants[len(loaded)].model if model is not None else first
    todo = work(names[0], first, reference, None if model is None else found.inputs, steps)
    console = Console()
    with _bar(console, "warming up", len(variants) * (2 + rounds)) as (tick, say):
        measure(variants, todo, rounds, say, tick)
    console.print(_table(variants, todo.what, rounds))
    if model is None:
        console.print("note: not made from the shipped model; pass --model to compare", style="yellow", markup=False, highlight=False)
    if out is not None:
        settings = {"engines": names, "model": model, "rounds": rounds, "steps": steps, "compile": compile, "device": str(place)}
        record = {"settings": settings, "protocol": PROTOCOL, "versions": versions(), "variants": {v.name: v.record() for v in variants}}
        with whole_files(out) as folder:
            (folder / "bench.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        typer.echo(out / "bench.json")
    for one in loaded:
        one.close()


def _alike(names: list[str], engines: list[Engine]) -> None:
    """OptionError where engines do not do the same work."""
    for name, one in zip(names[1:], engines[1:], strict=True):
        for what in ("method", "config.granularity", "call.leaves", "model.model_class"):
            a, b = (_attribute(e.manifest, what) for e in (engines[0], one))
            if a != b:
                raise OptionError(f"{names[0]} and {name} differ in {what}; compare engines of the same model, method and batch")


def _attribute(of: Any, path: str) -> Any:
    for name in path.split("."):
        of = getattr(of, name)
    return of


def _label(path: Path, engine: Engine, all_of_them: list[Engine]) -> str:
    kind = f"{engine.manifest.backend}, {engine.manifest.config.dispatch}"
    alike = [
        one
        for one in all_of_them
        if (one.manifest.backend, one.manifest.config.dispatch) == (engine.manifest.backend, engine.manifest.config.dispatch)
    ]
    return kind if len(alike) == 1 else f"{kind} ({path})"


def _table(variants: list[Timed], what: str, rounds: int) -> Table:
    """The measurements as people read them."""
    caption = (
        f"ms: medians of {rounds} generations of each in turns, below generations the smallest and the largest. error: the largest "
        "of a step, of the CachedModel's output; = the same decisions. host reads: looks at values on the device in a generation, "
        "on a CPU also at those that were the host's anyway. state: all memory of one generation's state."
    )
    shown = Table(title=what, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", "NFC", "FULL\nms", "ESTIMATE\nms", "generation\nms", "host\nreads", "state\nMiB", "files\nMiB", "error"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for one in variants:
        steps = [record_ms(one.record()[key]) for key in ("full_ms", "estimate_ms")]
        held = ["-" if count is None else f"{count / 2**20:.1f}" for count in (one.state_bytes, one.artefact_bytes)]
        shown.add_row(one.name, str(one.nfc), *steps, span(one.timing), str(one.host_reads), *held, _error(one.verdict))
    return shown


def record_ms(value: float | None) -> str:
    """Milliseconds of a step, where there was one."""
    return "-" if value is None else f"{value:.1f}"


def _error(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    same = verdict.parity.phases == verdict.parity.expected_phases
    return f"{'=' if same else 'other decisions'} {verdict.parity.worst:.0e}"


def main() -> None:
    """Entry point of the command rfc-fx."""
    run_app()


if __name__ == "__main__":
    main()
