"""The pipeline's half of `rfc-fx bench`: eager, compiled and accelerated calls, timed in turns."""

from __future__ import annotations

from pathlib import Path

import torch
import typer

from rfc_fx.runtime.summary import as_text
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.named_methods import MethodArguments
from rfc_fx.tools.output import check_writable, print_notes, progress_bar, whole_files, write_json
from rfc_fx.tools.pipeline.bench import bench_pipeline
from rfc_fx.tools.pipeline.bench_report import bench_record, bench_table
from rfc_fx.tools.pipeline.call import CallOptions, pipeline_call
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.pipeline.methods import DEFAULT, pipeline_methods
from rfc_fx.tools.pipeline.source import PipelineSource
from rfc_fx.tools.terminal import terminal


def time_pipeline(
    name: str,
    options: CallOptions,
    method: str | None,
    arguments: MethodArguments,
    *,
    seed: int,
    rounds: int,
    compile: bool,
    dtype: torch.dtype | None,
    device: torch.device,
    out: Path,
) -> None:
    """Check everything, load the pipeline, time it, write bench.json and bench.txt to `out`, then print."""
    folder = pipeline_folder(name)
    call = pipeline_call(folder, options)
    arguments = MethodArguments(**{**vars(arguments), "num_steps": call.steps, "model": name})
    (chosen,) = pipeline_methods([DEFAULT if method is None else method], arguments).values()
    if "num_inference_steps" in call.parameters and call.steps < 2:
        raise OptionError(f"--steps must be at least 2, of which one can be skipped, got {call.steps}")
    check_writable(out)
    source = PipelineSource(name=name, pipe=folder.load(dtype, device), call=call, seeds=[seed])
    console = terminal()
    total = (2 + compile) * (1 + rounds) * len(call.batches) * call.steps
    with progress_bar("warming up", total) as (advance, describe):
        timed = bench_pipeline(
            source,
            chosen,
            nfc=arguments.nfc,
            speedup=arguments.speedup,
            rounds=rounds,
            compile=compile,
            config=None,
            tick=advance,
            describe=describe,
        )
    table = bench_table(timed)
    with whole_files(out) as files:
        write_json(files / "bench.json", bench_record(timed))
        (files / "bench.txt").write_text("\n".join([as_text(table), *(f"note: {note}" for note in timed.notes())]) + "\n")
    console.print(table)
    print_notes(console, timed.notes())
    for file in ("bench.json", "bench.txt"):
        typer.echo(out / file)
