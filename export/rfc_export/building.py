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
from rfc_export.exported_module import ExportedModule
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config

TRANSFORM = "transform: "
"""What errors of `rfc_fx.transform` about its arguments begin with."""

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


@contextmanager
def calling(model: str, number: int, count: int) -> Iterator[None]:
    """What the model itself raises of an example call, or `rfc_fx.transform` of its settings, is an ExportError that names the call."""
    try:
        yield
    except EXPLAINED:
        raise
    except Exception as error:
        if str(error).startswith(TRANSFORM):
            raise ExportError(f"export: {model}: {str(error).removeprefix(TRANSFORM)}") from error
        which = "example_inputs" if count == 1 else f"call {number + 1} of the {count} in example_inputs"
        raise ExportError(
            f"export: {model} cannot be called with {which}: {type(error).__name__}: {short(error)}; pass the arguments of a call that "
            "the model answers, as a mapping or a tuple"
        ) from error


def check_arguments(model: nn.Module, method: Method | None, config: Config | None) -> None:
    """TypeError for arguments of another type, ExportError for an engine, which has no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model must be a torch.nn.Module, got {type(model).__name__}; of a pipeline pass pipe.transformer")
    if isinstance(model, ExportedModule):
        raise ExportError(f"export: the model is {model.KIND} already; pass the model that it was exported from")
    if not isinstance(method, Method | None):
        raise TypeError(
            f"export: method must be an rfc method such as rfc.RFC(tau=0.1) or the path of a method file (.json), got {method!r}"
        )
    if not isinstance(config, Config | None):
        raise TypeError(f"export: config must be a rfc_fx.Config such as rfc_fx.Config(granularity='block'), got {config!r}")


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
