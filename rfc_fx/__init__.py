"""Feature caching for diffusion transformers as a graph transformation.

model = rfc_fx.transform(pipe.transformer)
pipe.transformer = torch.compile(model, fullgraph=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rfc.method import Method
from rfc_fx.capture.export import args_and_kwargs
from rfc_fx.errors import CaptureError, IllegalGraphError, NoSiteError, PredictorMismatchError, RFCError, SignatureError, StateBudgetError
from rfc_fx.io.method_file import read_method, write_method
from rfc_fx.io.predictor import write_predictor
from rfc_fx.ir.config import Config
from rfc_fx.ir.plan import Plan
from rfc_fx.passes.build import build
from rfc_fx.report.explain import Explanation, explain
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.cond_model import CondModel
from rfc_fx.runtime.kinds import cached_model
from rfc_fx.runtime.per_sample import PerSampleModel
from rfc_fx.runtime.sampler import default_method
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning

__all__ = [
    "CachedModel",
    "CaptureError",
    "CondModel",
    "Config",
    "Explanation",
    "IllegalGraphError",
    "NoSiteError",
    "NothingSkippedWarning",
    "PerSampleModel",
    "Plan",
    "PredictorMismatchError",
    "RFCError",
    "SignatureError",
    "StateBudgetError",
    "StepsMismatchWarning",
    "explain",
    "read_method",
    "read_preset",
    "transform",
    "write_method",
    "write_predictor",
    "write_preset",
]

read_preset, write_preset = read_method, write_method
"""By the names they had while a preset meant a method file, too; now presets are published settings alone (`rfc.preset`)."""


def transform(
    model: nn.Module,
    method: Method | str | Path | None = None,
    *,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    source: Any = None,
    config: Config = Config(),
) -> CachedModel:
    """Return `model` with every residual branch behind a guard: computed in full, or estimated from its cache.

    `method`: an rfc method or the path of a method file (.json); None: `rfc.LogSNR` at the noise levels of `source`, else `rfc.RFC()`.
    `example_inputs`: arguments of one call, captured now (`passes.build`); None: the first call is. `source`: a pipeline or scheduler, held
    weakly, read as it stands; every generation has its timesteps (`CachedModel.follow`).

    Raises TypeError or ValueError for wrong arguments, and, now or in the first call, CaptureError, NoSiteError and StateBudgetError.
    """
    if isinstance(method, str | Path) and Path(method).suffix == ".json":
        method = read_method(method)
    cached = cached_model(model, default_method(source) if method is None else method, config, build)
    if source is not None:
        cached.follow(source)
    if example_inputs is not None:
        args, kwargs = args_and_kwargs(example_inputs)
        cached.trace(*args, **kwargs)
    return cached
