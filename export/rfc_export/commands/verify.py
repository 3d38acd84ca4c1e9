"""`rfc-fx verify`: an engine against this machine, and against the model it was made from."""

from __future__ import annotations

from typing import Annotated

import typer

from rfc_export.commands.options import Engine, Trust, Trusted
from rfc_export.runtime import load
from rfc_export.verify import cached_like, checks, exported_from, parity_over, record_generation
from rfc_fx.tools import options
from rfc_fx.tools.load import locate, model_kind


def verify(
    engine: Engine,
    model: Annotated[str | None, typer.Option(help="what it was made from: a whole generation of both is compared")] = None,
    allow_pickle: options.AllowPickle = False,
    method_classes: options.MethodClasses = None,
    trusted: Trusted = None,
    trust: Trust = False,
    device: options.Device = options.CPU,
) -> None:
    """Check manifest, files, target and versions; with the model also every decision and output of a generation."""
    if model is not None:
        model_kind(locate(model))  # refused before anything is loaded
    for subject, finding in checks(engine, device, method_classes or (), trusted, trust):
        typer.echo(f"{subject:<9} {finding}")
    if model is None:
        return
    loaded = load(engine, device=device, classes=method_classes or (), trusted=trusted, trust=True)
    original = exported_from(model, loaded)
    failed = False
    for number, inputs in enumerate(original.calls):
        cached = cached_like(loaded, original.model, inputs)
        verdict = parity_over(loaded, cached, record_generation(str(engine), loaded, cached, inputs, number=number))
        which = f"call {number + 1} of {len(original.calls)}, " if len(original.calls) > 1 else ""
        typer.echo(f"{'parity':<9} {which}{verdict.finding}", err=verdict.fault is not None)
        failed = failed or verdict.fault is not None
    loaded.close()
    if failed:
        raise typer.Exit(1)
