"""Building: what no engine can serve is refused before anything is built; what a library raises is told with model, phase and way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from torch import nn

import rfc_fx
from rfc.arguments import timestep_argument
from rfc.method import Method
from rfc.schedules.fixed import Every
from rfc_export.backends import Report
from rfc_export.errors import ExportError, short
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config

EXPLAINED = (RFCError, OSError, SafetensorError, MemoryError)
"""Errors that say themselves what to do, or are told elsewhere: a full disk (`artifact.writing`), memory (`main`)."""


class Stages:
    """Passes lines about what is being done on, and keeps the latest."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.latest = "begin"

    def __call__(self, line: str) -> None:
        self.latest = line
        self._report(line)


@contextmanager
def explained(model: str, stages: Stages, backend: str, config: Config) -> Iterator[None]:
    """Whatever a library raises inside is an ExportError with the model, the stage and its phase, the library's words, and what to try."""
    try:
        yield
    except EXPLAINED:
        raise
    except Exception as error:
        raise ExportError(
            f"export: {model}: {stages.latest} failed with {backend}, nothing was written: {type(error).__name__}: {short(error)}; "
            f"try {' or '.join(_ways_out(backend, config))}"
        ) from error


def _ways_out(backend: str, config: Config) -> list[str]:
    ways = [f"backend={'onnx' if backend == 'aoti' else 'aoti'!r}"]
    ways += ["dispatch='host'"] if config.dispatch == "cond" else [f"hoist={config.hoist is False}"]
    return ways


def check_timestep(model: nn.Module, method: Method) -> None:
    """ExportError for a model without a timestep: its engine would never see a new generation, and estimate one from another.

    Full computation estimates nothing and is taken.
    """
    is_cached = isinstance(model, rfc_fx.CachedModel)
    timestep = model.timestep_argument if is_cached else timestep_argument(model.forward)
    name = model.model_name if is_cached else type(model).__name__
    computes_all = isinstance(method.schedule, Every) and method.schedule.interval == 1
    if timestep is None and not computes_all:
        raise ExportError(
            f"export: {name}.forward has no timestep, by which an engine knows a new generation: {method.name} would estimate a picture "
            "from the one before; export the denoiser, or pass method=rfc.FullCompute()"
        )
