"""Feature caching for diffusion transformers as a graph transformation.

model = rfc_fx.transform(pipe.transformer)
pipe.transformer = torch.compile(model, fullgraph=True)

or, for a pipeline, in one line: rfc_fx.accelerate(pipe)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rfc.method import Method
from rfc.placement.log_snr import LogSNR
from rfc.schedules.base import Schedule
from rfc_fx.capture.export import args_and_kwargs
from rfc_fx.errors import (
    CaptureError,
    IllegalGraphError,
    NoSiteError,
    PredictorMismatchError,
    RanksError,
    RFCError,
    SignatureError,
    StateBudgetError,
)
from rfc_fx.io.method_file import method_of, read_method, write_method
from rfc_fx.io.predictor import write_predictor
from rfc_fx.ir.config import Config
from rfc_fx.ir.plan import Plan
from rfc_fx.passes.build import build
from rfc_fx.pipelines.accelerated import SpeedupWarning, accelerate_pipeline, restore
from rfc_fx.pipelines.summary import PipelineSummary
from rfc_fx.report.explain import Explanation, explain
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.cond_model import CondModel
from rfc_fx.runtime.kinds import cached_model
from rfc_fx.runtime.numbers import ChangingNumberWarning
from rfc_fx.runtime.per_sample import PerSampleModel
from rfc_fx.runtime.sampler import default_method, for_source
from rfc_fx.runtime.timestep_check import OtherTimestepsWarning
from rfc_fx.runtime.warnings import (
    ForeignHooksWarning,
    LateCallWarning,
    MovedWeightsWarning,
    NothingSkippedWarning,
    RepeatedCallWarning,
    RisingTimestepWarning,
    StepsMismatchWarning,
    UncertainCallWarning,
    UnknownLevelsWarning,
    UnknownPassWarning,
)

__all__ = [
    "CachedModel",
    "CaptureError",
    "ChangingNumberWarning",
    "CondModel",
    "Config",
    "Explanation",
    "ForeignHooksWarning",
    "IllegalGraphError",
    "LateCallWarning",
    "MovedWeightsWarning",
    "NoSiteError",
    "NothingSkippedWarning",
    "OtherTimestepsWarning",
    "PerSampleModel",
    "Plan",
    "PredictorMismatchError",
    "RFCError",
    "RanksError",
    "RepeatedCallWarning",
    "RisingTimestepWarning",
    "SignatureError",
    "SpeedupWarning",
    "StateBudgetError",
    "StepsMismatchWarning",
    "UncertainCallWarning",
    "UnknownLevelsWarning",
    "UnknownPassWarning",
    "accelerate",
    "explain",
    "read_method",
    "read_preset",
    "restore",
    "summary",
    "transform",
    "write_method",
    "write_predictor",
    "write_preset",
]

read_preset, write_preset = read_method, write_method
"""By the names they had while a preset meant a method file, too; now presets are published settings alone (`rfc.preset`)."""


def accelerate(
    pipe: Any,
    method: Method | str | Path | None = None,
    *,
    nfc: int | float | None = None,
    speedup: float | None = None,
    config: Config | None = None,
    compile: bool | Mapping[str, Any] = True,
) -> Any:
    """Return the pipeline with every denoiser cached, and compiled at its first call; all else of it is as it was, `restore` undoes it.

    Every call of the pipeline is a generation of its own: it owns its state, reads the scheduler as it stands, and places the full steps
    for its own noise levels, so that steps, strength, shift and size may change from call to call. Calls of several threads and tasks may
    run at once, of pipelines that share the model and have a scheduler each. Called again it changes the settings.

    `method`: an rfc method or the path of a method file, None: `rfc.LogSNR`. `nfc`: its full steps, as a number or a share (None: 28 %).
    `speedup`, in its place: how many times faster than full computation a generation is to be; the first one measures full and estimated
    steps, unless this graph was measured on this device before, and from then on as many steps are full as that takes. `config`: how the
    models are transformed, None: chosen (`rfc_fx.pipelines.choices`). `compile`: False, or arguments of torch.compile; True:
    `fullgraph=True`, and CUDA graphs on CUDA where they hold (`summary` says why not).

    Raises TypeError for what is no pipeline, ValueError for a pipeline without a transformer and for settings that cannot be, and in the
    first call CaptureError, NoSiteError and StateBudgetError, after which the pipeline is as it was.
    """
    chosen = LogSNR() if method is None else method_of(method)
    if nfc is not None:
        chosen = _counted("nfc", chosen, nfc)
    if speedup is not None:
        if nfc is not None:
            raise ValueError("accelerate: pass nfc or speedup, not both: the speed-up says how many steps are full")
        if isinstance(speedup, bool) or not isinstance(speedup, int | float) or not 1 < speedup < float("inf"):
            raise ValueError(f"accelerate: speedup must be a number above 1, got {speedup!r}")
        _counted("speedup", chosen, None)
    if not isinstance(compile, bool | Mapping):
        raise TypeError(f"accelerate: compile must be True, False or arguments of torch.compile such as {{'mode': ...}}, got {compile!r}")
    options: dict[str, Any] | None = None
    if compile is not False:
        options = {"fullgraph": True} | ({} if compile is True else dict(compile))
    accelerate_pipeline(pipe, for_source(chosen, pipe), config, options, build, speedup, graphs=compile is True)
    return pipe


def summary(pipe: Any) -> PipelineSummary:
    """What the latest generation of an accelerated pipeline computed and skipped, for each denoiser, and what was chosen; print it."""
    return PipelineSummary(pipe)


def _counted(setting: str, method: Any, nfc: int | float | None) -> Any:
    """The method with that many full steps; ValueError for a number that cannot be, or a method that places none."""
    if not isinstance(method, Method):
        return method  # refused by name where it is used
    if type(method.schedule).with_nfc is Schedule.with_nfc:
        raise ValueError(
            f"accelerate: {setting} is for methods like rfc.LogSNR, rfc.Chebyshev and rfc.Spectrum; {type(method.schedule).__name__} of "
            f"{method.name} does not place a number of full steps; leave {setting} out"
        )
    return method.with_nfc(nfc)


def transform(
    model: nn.Module,
    method: Method | str | Path | None = None,
    *,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    source: Any = None,
    config: Config = Config(),
    group: Any = None,
) -> CachedModel:
    """Return `model` with every residual branch behind a guard: computed in full, or estimated from its cache.

    `method`: an rfc method or the path of a method file (.json); None: `rfc.LogSNR` at the noise levels of `source`, else `rfc.RFC()`.
    `example_inputs`: arguments of one call, captured now (`passes.build`); None: the first call is. `source`: a pipeline or scheduler, held
    weakly, read as it stands; every generation has its timesteps (`CachedModel.follow`). `group`: the torch.distributed.ProcessGroup of
    ranks that compute batches of their own and decide together (guidance parallel); the ranks among which diffusers' `enable_parallelism`
    has split a sequence do so without it.

    Raises TypeError or ValueError for wrong arguments, and, now or in the first call, CaptureError, NoSiteError, StateBudgetError and
    RanksError.
    """
    chosen = for_source(default_method(source) if method is None else method_of(method), source)
    cached = cached_model(model, chosen, config, build, group)
    if source is not None:
        cached.follow(source)
    if example_inputs is not None:
        args, kwargs = args_and_kwargs(example_inputs)
        cached.trace(*args, **kwargs)
    return cached
