"""Accelerated pipelines, and what their denoisers record: all that the command line asks of `rfc_fx` about whole pipelines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

import rfc_fx
from rfc.bookkeeping import Book
from rfc.method import Method
from rfc.record import Record
from rfc_fx.ir.config import Config
from rfc_fx.pipelines.accelerated import transformers_of
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.tools.load import LoadError, one_line
from rfc_fx.tools.pipeline.methods import takes_speedup


def accelerated(
    pipe: Any, method: Method | None, *, nfc: int | float | None, speedup: float | None, compile: bool, config: Config | None
) -> Any:
    """A relative of the pipeline, accelerated; LoadError for a pipeline or settings that cannot be.

    A method that was made with its own number of full steps takes no `nfc`, one that places none no `speedup`.
    """
    nfc = nfc if method is None else None
    speedup = speedup if takes_speedup(method) else None
    try:
        return rfc_fx.accelerate(relative(pipe), method, nfc=nfc, speedup=speedup, compile=compile, config=config)
    except (TypeError, ValueError) as error:
        raise LoadError(one_line(error)) from error


def relative(pipe: Any) -> Any:
    """Another pipeline with the same components, and a scheduler of its own."""
    other = copy.copy(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    return other


def models(pipe: Any) -> Iterator[StepModel]:
    """The transformed denoisers."""
    for model in transformers_of(pipe).values():
        inner: nn.Module = getattr(model, "_orig_mod", model)
        if isinstance(inner, StepModel):
            yield inner


def method_of(pipe: Any) -> Method:
    """The method that the first denoiser has."""
    return next(models(pipe)).method


def records(pipe: Any) -> dict[str, Record]:
    """What the latest generation did, by context; the steps of several denoisers one after the other."""
    joined: dict[str, Record] = {}
    for model in models(pipe):
        for name, record in model.contexts.items():
            if record.phases:
                joined[name] = _continued(joined[name], record) if name in joined else record
    return joined


def _continued(first: Record, then: Record) -> Record:
    phases, eps, totals = ((*getattr(first, field), *getattr(then, field)) for field in ("phases", "eps", "totals"))
    return Record(Book(phases=phases, eps=eps, totals=totals))


def state_bytes(pipe: Any) -> int:
    """Bytes of state that the denoisers hold."""
    return sum(model.summary().held_bytes for model in models(pipe))
