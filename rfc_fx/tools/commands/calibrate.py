"""`rfc-fx calibrate`: a method's full steps or threshold, found on samples and written to a file."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

import rfc
from rfc_fx.io.method_file import write_method
from rfc_fx.tools import options
from rfc_fx.tools.arguments import MOST_SEED, OptionError, finite
from rfc_fx.tools.calibrate import LISTS, Calibrated, Goal, check_calibratable, named
from rfc_fx.tools.calibrate import calibrate as search
from rfc_fx.tools.commands.method_source import SourceOptions, source_for_file
from rfc_fx.tools.named_methods import METHODS, MethodArguments, new_method
from rfc_fx.tools.terminal import progress_terminal


def calibrate(
    model: options.SourceArgument = "digits",
    nfc: Annotated[
        float | None,
        typer.Option(parser=finite("--nfc", 1), metavar="NUMBER", help="mean number of full computations of a generation"),
    ] = None,
    psnr: Annotated[
        float | None, typer.Option(parser=finite("--psnr", 0), metavar="NUMBER", help="smallest PSNR in dB against full computation")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            parser=finite("--max-error", 0), metavar="NUMBER", help="largest ||x - x_full|| / ||x_full||, geometric mean over samples"
        ),
    ] = None,
    method: Annotated[str, typer.Option(help=f"log-snr, chebyshev, or one with a threshold, of {', '.join(METHODS)}")] = "log-snr",
    order: options.Order = None,
    steps: options.Steps = 50,
    cfg: options.Guidance = None,
    classes: options.Classes = None,
    prompt: options.Prompts = None,
    call: options.Call = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="first seed; take others than you will judge by")] = 1000,
    seeds: options.Seeds = 4,
    allow_pickle: options.AllowPickle = False,
    dtype: options.StoredDType = None,
    device: options.Device = options.CPU,
    compile: Annotated[bool, typer.Option(help="torch.compile(fullgraph=True)")] = False,
    lists: Annotated[int, typer.Option(min=1, max=100_000, help="log-snr, chebyshev: lists of full steps drawn, at most")] = LISTS,
    out: Annotated[Path, typer.Option(help="a .json file: --method of generate, and transform, take it")] = Path("out/method.json"),
) -> None:
    """Find a method's full steps or threshold for a number of full computations, or for most savings within a bound on quality."""
    goal = Goal(nfc=nfc, psnr=psnr, max_error=max_error)
    if nfc is not None and nfc > steps:
        raise OptionError(f"--nfc must be at most --steps ({steps}), got {nfc:g}")
    if out.suffix != ".json" or out.is_dir():
        raise OptionError(f"--out {out}: expected a file that ends in .json, as --method of generate takes it")
    uncalibrated = new_method(method, MethodArguments(order=order, num_steps=steps, model=model))
    check_calibratable(uncalibrated)  # before anything is loaded
    drawn = SourceOptions(classes=classes, prompts=prompt, first_seed=seed, seeds=seeds, cfg=cfg, dtype=dtype, device=device, call=call)
    source = source_for_file(model, drawn, out)
    with progress_terminal().status("calibrating") as status:

        def report(text: str) -> None:
            status.update(f"calibrating: {text}")

        calibrated = search(source, uncalibrated, goal, steps, compile=compile, lists=lists, report=report)
    measured = calibrated.measured
    settings = {"model": source.name, "steps": steps, "seeds": source.seeds, "groups": len(source.groups), "asked": goal.text}
    reached = {"nfc": measured.nfc, "psnr_db": measured.psnr_db if isfinite(measured.psnr_db) else None, "error": measured.error}
    write_method(out, calibrated.method, settings | {"threshold": calibrated.threshold, **reached})
    typer.echo(
        f"{method}: {_result(calibrated)} gives NFC {measured.nfc:.2f} of {steps}, PSNR {measured.psnr_db:.1f} dB, error "
        f"{measured.error:.2g} over {len(source.seeds)} x {len(source.groups)} samples ({calibrated.tried} tried)\n{out}"
    )


def _result(calibrated: Calibrated) -> str:
    """The threshold, or the forecast and its full steps."""
    schedule = calibrated.method.schedule
    if calibrated.threshold is not None:
        return f"threshold {calibrated.threshold:.4g}"
    assert isinstance(schedule, rfc.Placed)
    return f"{named(calibrated.method.estimator)}, full steps {', '.join(map(str, schedule.full_steps))},"
