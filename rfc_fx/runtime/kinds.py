"""The kinds of CachedModel: which one a configuration asks for."""

from __future__ import annotations

from typing import Any

from torch import nn

from rfc.method import Method
from rfc.storage import stored_anew
from rfc_fx.capture.refusals import refuse
from rfc_fx.ir.config import Config
from rfc_fx.runtime.cached_model import Build, CachedModel
from rfc_fx.runtime.cond_model import CondModel
from rfc_fx.runtime.per_sample import PerSampleModel
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.sites.granularity import granularities_for


def cached_model(model: nn.Module, method: Any, config: Config, build: Build, group: Any = None) -> CachedModel:
    """The cached model of a method and a configuration, before anything is captured; `build` makes its programs.

    `group`: the ranks that take one decision for batches of their own, a torch.distributed.ProcessGroup. Raises TypeError for arguments of
    another type and for a transformed model, ValueError where the method has another granularity than the configuration, CaptureError for a
    model that a graph cannot stand for.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"transform: model must be a torch.nn.Module, got {type(model).__name__}; for a pipeline pass pipe.transformer")
    if isinstance(model, CachedModel):
        raise TypeError("transform: the model is transformed already; pass its .model to transform it in another way")
    if isinstance(model, StepModel):
        raise TypeError(
            f"transform: the model is an engine of {model.model_name}, cached already; pass the model that it was exported from"
        )
    if not isinstance(method, Method):
        raise TypeError(
            f"transform: method must be an rfc method such as rfc.RFC(tau=0.1) or the path of a method file (.json), got {method!r}"
        )
    if not isinstance(config, Config):
        raise TypeError(f"transform: config must be a rfc_fx.Config such as rfc_fx.Config(granularity='block'), got {config!r}")
    try:
        granularities_for(config, method)
    except ValueError as error:
        raise ValueError(f"transform: {error}") from None
    if group is not None and not (callable(getattr(group, "size", None)) and hasattr(group, "group_name")):
        raise TypeError(f"transform: group must be a torch.distributed.ProcessGroup such as mesh.get_group('cfg'), got {group!r}")
    refuse(model)
    kind = CondModel if config.dispatch == "cond" else PerSampleModel if config.decision == "per_sample" else CachedModel
    if config.state_dtype is not None:
        method = stored_anew(method, config.state_dtype)
    return _named_after(kind, type(model))(model, method, config, build, group)


def _named_after(kind: type[CachedModel], model: type[nn.Module]) -> type[CachedModel]:
    """A kind under the name of the model's class: modular pipelines save what `type()` says, and such folders load without this package."""
    return type(model.__name__, (kind,), {"__module__": model.__module__, "__qualname__": model.__qualname__, "__doc__": kind.__doc__})
