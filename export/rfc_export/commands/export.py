"""`rfc-fx export`: a model becomes an engine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import rfc
from rfc_export.added import check_there
from rfc_export.artifact import check_place
from rfc_export.backends import backend as backend_of
from rfc_export.drawing import sizes
from rfc_export.engine_files import opened
from rfc_export.engine_source import exportable, is_called
from rfc_export.example_calls import Wanted, parse_batches, parse_sizes, placed
from rfc_export.exporter import export as export_model
from rfc_export.manifest import MANIFEST
from rfc_export.methods import check_method
from rfc_export.reading import read_manifest
from rfc_export.seal import public_key
from rfc_export.specs import BackendName
from rfc_export.whole import INDEX, export_whole
from rfc_fx.runtime.summary import mib
from rfc_fx.tools import options
from rfc_fx.tools.arguments import OptionError, dtype_named, new_config
from rfc_fx.tools.load import locate, model_kind
from rfc_fx.tools.named_methods import MethodArguments, check_granularity, check_settings, new_methods, taking
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.terminal import note_progress


def export(
    model: options.ModelArgument,
    backend: Annotated[BackendName, typer.Option(help="what runs the programs: AOTInductor, ONNX Runtime or TensorRT")],
    out: Annotated[Path, typer.Option(help="the engine's folder, or a file that ends in .pt2")],
    method: options.Method = "rfc",
    preset: options.Preset = None,
    tau: options.Tau = None,
    threshold: options.Threshold = None,
    order: options.Order = None,
    interval: options.Interval = None,
    nfc: options.NFC = None,
    steps: Annotated[int | None, typer.Option(min=1, max=10_000, help=f"of a generation, for {', '.join(taking('num_steps'))}")] = None,
    granularity: options.Granularity = None,
    state_dtype: options.StateDType = None,
    dispatch: options.DispatchOption = "host",
    hoist: Annotated[
        bool | None,
        typer.Option(
            "--hoist/--no-hoist",
            help="compute ahead of the steps whatever does not depend on the latent (default with host dispatch)",
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="samples of a call, 4 or 1,4 for several; guidance doubles them (default: 10 for digits, else 1)")
    ] = None,
    shapes: Annotated[
        str | None, typer.Option(help="sizes of pictures, widths x heights in pixels: 1024x1024,768x1344 (default: the pipeline's)")
    ] = None,
    prompt: options.Prompts = None,
    negative_prompt: options.NegativePrompt = None,
    call: options.Call = None,
    add: Annotated[bool, typer.Option("--add", help="add the calls to the engine that is there")] = False,
    allow_pickle: options.AllowPickle = False,
    dtype: options.DType = "float32",
    device: options.Device = options.CPU,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Ed25519 private key (PEM): whoever trusts its public half may load only what it signed"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the engine that is there")] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="a folder that draws alone: text encoders, VAE decoder, tokenizers and scheduler too")
    ] = False,
) -> None:
    """Transform a model, build its programs for a back end, and check the engine against the model."""
    config = new_config(granularity=granularity, state_dtype=state_dtype, dispatch=dispatch, hoist=hoist)
    batches, sizes_wanted = parse_batches(batch), parse_sizes(shapes)
    if whole:
        _check_whole(model, out, add)
    check_place(out, overwrite=overwrite or add, mark=INDEX if whole else MANIFEST)
    if add:
        check_there(out)
    said = (
        CallOptions(prompts=prompt or [], negative_prompt=negative_prompt, assignments=call or [])
        if prompt or negative_prompt or call
        else None
    )
    wanted = Wanted(batches=batches, sizes=sizes_wanted, call=said)
    arguments = MethodArguments(
        tau=tau,
        threshold=threshold,
        order=order,
        interval=interval,
        nfc=nfc,
        num_steps=steps,
        preset=preset,
        model=model,
        is_digits=model_kind(locate(model)) == "digits",
    )
    if method == "log-snr" and (whole or is_called(model, wanted)):
        check_settings([method], replace(arguments, preset=None))
        if preset is not None:
            raise OptionError(f"--preset: {method} has no published settings; leave it out")
        if steps is not None and isinstance(arguments.nfc, int) and arguments.nfc > steps:
            raise OptionError(f"--nfc must be from 1 to {steps}, the steps of a generation, got {nfc}")
        instance = rfc.LogSNR(nfc=nfc, order=2 if order is None else order)  # placed when the pipeline has set its scheduler
    else:
        (instance,) = new_methods([method], arguments).values()
    check_granularity({method: instance}, config)
    check_method(instance, config.dispatch)
    signer = None if sign is None else public_key(sign)
    backend_of(backend).check(device)  # before anything is loaded
    start = time.perf_counter()

    def report(stage: str) -> None:
        note_progress(f"{time.perf_counter() - start:6.1f} s  {stage}")

    if whole:
        export_whole(
            model,
            out,
            backend,
            wanted,
            dtype=dtype_named(dtype),
            device=device,
            method=instance,
            config=config,
            steps=steps,
            overwrite=overwrite,
            sign=sign,
            report=report,
        )
        _print_whole(model, out, time.perf_counter() - start)
        return
    exported = exportable(model, dtype_named(dtype), device, wanted, steps)
    if not instance.schedule.is_bound:
        instance = placed(model, instance, exported.scheduler)
    if others := exported.others:
        note_progress(f"note: this engine is of the first denoiser alone; of {', '.join(others)} call rfc_export.export")
    export_model(
        exported.model,
        out,
        backend=backend,
        example_inputs=list(exported.calls),
        method=instance,
        config=config,
        sampler=exported.sampler,
        overwrite=overwrite,
        add=add,
        sign=sign,
        report=report,
    )
    typer.echo(f"{time.perf_counter() - start:6.1f} s  done: {out}")
    if signer is not None:
        typer.echo(f"signed:        load it with --trusted {signer}")
    with opened(out) as files:
        for name, count in sizes(files, read_manifest(files)).items():
            typer.echo(f"  {name:<24} {mib(count):>12}")
    if exported.sampler is not None:
        typer.echo(f"draw with it:  rfc-fx run {out} --classes 3\ncheck it:      rfc-fx verify {out} --model {model}")
    else:
        typer.echo(f"use it:    pipe.transformer = rfc_export.load({str(out)!r})\ncheck it:  rfc-fx verify {out} --model {model}")


def _check_whole(model: str, out: Path, add: bool) -> None:
    if add:
        raise OptionError("--add: adds calls to one engine; export the whole pipeline again with all --shapes and --batch")
    if out.suffix == ".pt2":
        raise OptionError(f"--out {out}: a whole pipeline is a folder of engines; pass a path without .pt2")
    if model_kind(locate(model)) != "pipeline":
        raise OptionError(f"--whole: is for pipelines, {model} has no model_index.json; leave it out")


def _print_whole(model: str, out: Path, seconds: float) -> None:
    typer.echo(f"{seconds:6.1f} s  done: {out}")
    for part in sorted(entry for entry in out.iterdir() if entry.is_dir()):
        typer.echo(f"  {part.name:<24} {mib(sum(file.stat().st_size for file in part.iterdir())):>12}")
    subject = "--prompt TEXT" if "prompt" in pipeline_folder(model).parameters else "--classes 3"
    typer.echo(f"draw with it:  rfc-fx run {out} {subject}")
