"""`rfc-fx bench`: a pipeline eager, compiled and accelerated, or engines beside CachedModel and twin, timed in turns."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from rfc_export.bench import PROTOCOL, Timed, engine_variant, measure, model_variants
from rfc_export.commands.options import Trust, Trusted
from rfc_export.drawing import is_shipped, sizes
from rfc_export.engine_files import opened
from rfc_export.manifest import MANIFEST
from rfc_export.reading import read_manifest
from rfc_export.runtime import Engine, load
from rfc_export.verify import STEPS, Verdict, exported_from, record_generation
from rfc_fx.runtime.summary import as_text
from rfc_fx.tools import options
from rfc_fx.tools.arguments import OptionError, device_here, dtype_named, parse_classes
from rfc_fx.tools.commands.bench import time_pipeline
from rfc_fx.tools.load import SHIPPED, locate, model_kind, path_problem
from rfc_fx.tools.named_methods import MethodArguments
from rfc_fx.tools.output import check_writable, print_notes, progress_bar, time_cell, whole_files, write_json
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.tools.summary_json import versions
from rfc_fx.tools.terminal import terminal


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="PIPELINE | ENGINE...", help="digits, emoji, a pipeline's folder or Hub id, or one or more engines"),
    ],
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="counted generations of every variant")] = 5,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help=f"of a generation (default: the pipeline's own; an engine's that are placed, else {STEPS})"),
    ] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile: the plain and the accelerated pipeline, an engine's CachedModel")] = True,
    device: options.DeviceHere = None,
    out: Annotated[Path | None, typer.Option(help="folder for bench.json and bench.txt (default: out/bench for a pipeline)")] = None,
    model: Annotated[str | None, typer.Option(help="engines: what they were made from (default: digits, where it is that)")] = None,
    method_classes: options.MethodClasses = None,
    trusted: Trusted = None,
    trust: Trust = False,
    method: Annotated[str | None, typer.Option(help=f"pipelines: {options.METHOD} (default: log-snr)")] = None,
    preset: options.Preset = None,
    tau: options.Tau = None,
    threshold: options.Threshold = None,
    order: options.Order = None,
    interval: options.Interval = None,
    nfc: options.NFC = None,
    speedup: options.Speedup = None,
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
    allow_pickle: options.AllowPickle = False,
    dtype: options.StoredDType = None,
) -> None:
    """Time a pipeline eager, compiled and accelerated, or engines beside the compiled CachedModel and the eager twin; all in turns."""
    own = CallOptions(
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
    arguments = MethodArguments(tau=tau, threshold=threshold, order=order, interval=interval, nfc=nfc, speedup=speedup, preset=preset)
    if not (_are_pipelines(targets) or Path(targets[0]).expanduser().exists()):
        raise OptionError(
            f"{targets[0]}: no such artefact, folder or model; bench takes digits, emoji, a pipeline's folder or Hub id, "
            "or engines: folders with rfc.json, or .pt2 files"
        )
    if not _are_pipelines(targets):
        if used := _used_options(own, arguments, method, dtype):
            raise OptionError(f"{used}: is for pipelines, and {targets[0]} is an engine")
        _bench_engines(
            [Path(target) for target in targets],
            model,
            rounds,
            steps,
            compile,
            method_classes,
            device or options.CPU,
            out,
            trusted,
            trust,
        )
        return
    if len(targets) > 1:
        raise OptionError(f"bench takes one pipeline, or engines, got {', '.join(targets)}")
    for option, value in (("--model", model), ("--class", method_classes), ("--trusted", trusted), ("--trust", trust)):
        if value:
            raise OptionError(f"{option}: is for engines, and {targets[0]} is a pipeline")
    time_pipeline(
        targets[0],
        own,
        method,
        arguments,
        seed=seed,
        rounds=rounds,
        compile=compile,
        dtype=None if dtype is None else dtype_named(dtype),
        device=device or device_here(),
        out=out or Path("out/bench"),
    )


def _are_pipelines(targets: list[str]) -> bool:
    """Whether the first target is a pipeline; one that is not there can only be a Hub id, unless its folder is there."""
    if path_problem(targets[0]) is not None:
        return True
    first = Path(targets[0]).expanduser()
    if first.exists():
        return first.is_dir() and not (first / MANIFEST).exists()
    return targets[0] in SHIPPED or (len(first.parts) == 2 and not first.suffix and not first.parent.exists())


def _used_options(own: CallOptions, arguments: MethodArguments, method: str | None, dtype: str | None) -> str | None:
    """The first option that only pipelines have."""
    plain = {"--prompt": own.prompts, "--classes": own.classes, "--call": own.assignments, "--method": method, "--dtype": dtype}
    settings = {f"--{name}": value for name, value in vars(arguments).items() if name != "is_digits"}
    return next((option for option, value in {**own.by_option(), **plain, **settings}.items() if value not in (None, [])), None)


def _bench_engines(
    engine: list[Path],
    model: str | None,
    rounds: int,
    steps: int | None,
    compile: bool,
    method_classes: list[type] | None,
    device: torch.device,
    out: Path | None,
    trusted: list[str] | None,
    trust: bool,
) -> None:
    if out is not None:
        check_writable(out)
    if model is not None:
        model_kind(locate(model))  # refused before anything is loaded
    names, bytes_of = [str(path) for path in engine], []
    for path in engine:
        with opened(path) as files:
            manifest = read_manifest(files, trusted)
            bytes_of.append(sum(sizes(files, manifest).values()))
            if model is None and is_shipped(manifest):
                model = "digits"
    engines = [load(path, device=device, classes=method_classes or (), trusted=trusted, trust=trust) for path in engine]
    first = engines[0]
    _check_comparable(names, engines)
    variants = [
        engine_variant(_label(name, loaded, engines), loaded, count) for name, loaded, count in zip(names, engines, bytes_of, strict=True)
    ]
    if model is not None:
        original = exported_from(model, first)
        variants += model_variants(first, original.model, original.calls[0], compile=compile)
    # without a model the first engine makes the calls
    caller = variants[len(engines)].model if model is not None else first
    generation = record_generation(names[0], first, caller, None if model is None else original.calls[0], steps)
    console = terminal()
    with progress_bar("warming up", len(variants) * (2 + rounds)) as (advance, describe):
        measure(variants, generation, rounds, describe, advance)
    table = _table(variants, generation.description, rounds)
    if out is not None:
        settings = {
            "engines": names,
            "model": model,
            "rounds": rounds,
            "steps": len(generation.calls),
            "compile": compile,
            "device": str(device),
        }
        record = {"settings": settings, "protocol": PROTOCOL, "versions": versions(), "variants": {v.name: v.record() for v in variants}}
        with whole_files(out) as folder:
            write_json(folder / "bench.json", record)
            (folder / "bench.txt").write_text(as_text(table))
    console.print(table)
    if model is None:
        print_notes(console, ["not made from the shipped model; pass --model to compare"])
    if out is not None:
        typer.echo(out / "bench.json")
    for loaded in engines:
        loaded.close()


def _check_comparable(names: list[str], engines: list[Engine]) -> None:
    """OptionError where engines do not do the same work."""
    for name, other in zip(names[1:], engines[1:], strict=True):
        for field in ("method", "config.granularity", "call.leaves", "model.model_class"):
            fact = attrgetter(field)
            if fact(engines[0].manifest) != fact(other.manifest):
                raise OptionError(f"{names[0]} and {name} differ in {field}; compare engines of the same model, method and batch")


def _label(name: str, engine: Engine, engines: list[Engine]) -> str:
    """Back end and dispatch, and the path where that alone would name two engines."""
    kinds = [f"{other.manifest.backend}, {other.manifest.config.dispatch}" for other in engines]
    kind = f"{engine.manifest.backend}, {engine.manifest.config.dispatch}"
    return kind if kinds.count(kind) == 1 else f"{kind} ({name})"


def _table(variants: list[Timed], title: str, rounds: int) -> Table:
    """A row for each variant, times in ms."""
    caption = (
        f"ms: medians of {rounds} generations of each in turns, below generations the smallest and the largest. error: the largest "
        "of a step, of the CachedModel's output; = the same decisions. host reads: looks at values on the device in a generation, "
        "on a CPU also at those that were the host's anyway. state: all memory of one generation's state."
    )
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", "NFC", "FULL\nms", "ESTIMATE\nms", "generation\nms", "host\nreads", "state\nMiB", "files\nMiB", "error"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for variant in variants:
        record = variant.record()
        steps = [_ms_cell(record[key]) for key in ("full_ms", "estimate_ms")]
        sizes_mib = ["-" if count is None else f"{count / 2**20:.1f}" for count in (variant.state_bytes, variant.artefact_bytes)]
        reads = str(variant.host_reads)
        table.add_row(variant.name, str(variant.nfc), *steps, time_cell(variant.timing), reads, *sizes_mib, _error_cell(variant.verdict))
    return table


def _ms_cell(milliseconds: float | None) -> str:
    """Milliseconds of a step, where there was one."""
    return "-" if milliseconds is None else f"{milliseconds:.1f}"


def _error_cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    same = verdict.parity.phases == verdict.parity.expected_phases
    return f"{'=' if same else 'other decisions'} {verdict.parity.worst:.0e}"
