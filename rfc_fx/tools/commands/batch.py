"""`rfc-fx batch`: a picture for every line of a file, with one worker or several, going on where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfc_fx.tools import options
from rfc_fx.tools.arguments import device_here
from rfc_fx.tools.load import locate
from rfc_fx.tools.output import check_writable, progress_bar
from rfc_fx.tools.requests.drawing import BatchError, draw_all, draw_here, draw_with_ray
from rfc_fx.tools.requests.prompts import LEDGER, drawn_already, read_prompts
from rfc_fx.tools.requests.worker import WorkerSettings


def batch(
    model: options.SourceArgument,
    prompts: Annotated[Path, typer.Option(help='file of JSON lines: {"prompt": "an apple", "seed": 1}; also class, id, steps, width, ...')],
    out: Annotated[Path, typer.Option(help=f"folder for pictures and {LEDGER}; what is there is not drawn again")],
    workers: Annotated[int, typer.Option(min=1, max=1_024, help="processes that draw; more than one need Ray")] = 1,
    size: Annotated[int, typer.Option("--batch", min=1, max=1_024, help="requests that one generation draws, where they fit together")] = 1,
    nfc: options.NFC = None,
    steps: options.RequestSteps = None,
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True)")] = True,
    device: options.DeviceHere = None,
) -> None:
    """Draw a picture for every line of a file; interrupted, the same command goes on where it was."""
    locate(model)
    own = device or device_here()
    settings = WorkerSettings(model=model, device=str(own) if workers == 1 else own.type, nfc=nfc, compile=compile, steps=steps)
    jobs = read_prompts(prompts, (model, repr(nfc), repr(steps)))
    check_writable(out)
    there = drawn_already(out)
    left = [job for job in jobs if job.name not in there]
    with progress_bar("drawing", len(left)) as (advance, _):
        source = draw_here(settings, left, size) if workers == 1 else draw_with_ray(settings, left, size, workers)
        failed = draw_all(source, out, advance) if left else []
    typer.echo(f"{out / LEDGER}: {len(jobs) - len(failed)} of {len(jobs)} pictures, {len(jobs) - len(left)} of them were there")
    if failed:
        job, why = failed[0]
        raise BatchError(f"{len(failed)} of {len(jobs)} requests failed, the first {job.name}: {why}; the same command tries them again")
