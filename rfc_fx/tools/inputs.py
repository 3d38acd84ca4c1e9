"""Inputs of one call of a model: made from its config, or taken from the first step of its pipeline."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from rfc_fx.tools.load import LoadError, load_transformer, locate, model_kind
from rfc_fx.tools.pipeline.call import CallOptions, pipeline_call
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.pipeline.source import PipelineSource

NEEDED = ("in_channels", "sample_size", "num_embeds_ada_norm")
"""Settings of a class-conditional transformer from which the inputs of a call are made."""


def load_with_inputs(name: str, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Return a transformer and inputs for it: made from its config, or taken from the first step of its pipeline."""
    where = locate(name)
    model = load_transformer(where, dtype, device)
    try:
        return model, example_inputs(name, model)
    except LoadError:
        if model_kind(where) != "pipeline":
            raise
    folder = pipeline_folder(name)
    call = pipeline_call(folder, CallOptions(prompts=["a lighthouse"]))
    pipe = folder.load(dtype, device, transformer=model)
    return pipe.transformer, pipeline_inputs(PipelineSource(name=name, pipe=pipe, call=call, seeds=[0]))


def example_inputs(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Inputs of one guided sample for a class-conditional transformer, from its config; LoadError for any other class."""
    config: Any = getattr(model, "config", {})
    takes = inspect.signature(model.forward).parameters
    if any(getattr(config, key, None) is None for key in NEEDED) or "class_labels" not in takes or "timestep" not in takes:
        raise LoadError(
            f"{name}: inputs of {type(model).__name__} cannot be made from its config (only those of class-conditional DiTs can); "
            "pass the folder of its pipeline (with model_index.json)"
        )
    weights = next(model.parameters())
    size = (2, config.in_channels, config.sample_size, config.sample_size)
    whole = torch.zeros(2, dtype=torch.long, device=weights.device)
    return {
        "hidden_states": torch.zeros(size, dtype=weights.dtype, device=weights.device),
        "timestep": whole,
        "class_labels": whole.clone(),
    }


class _InterceptedCall(Exception):  # noqa: N818
    """Carries the arguments of the transformer's first call out of the pipeline."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


class _Interceptor(nn.Module):
    """Stands where the transformer stood and raises what it is called with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.signature = inspect.signature(model.forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _InterceptedCall(dict(self.signature.bind(*args, **kwargs).arguments))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def pipeline_inputs(source: PipelineSource) -> dict[str, Any]:
    """What the pipeline passes to its transformer in the first step; nothing heavy runs but the text encoders."""
    try:
        source.draw(_Interceptor(source.model), source.seeds[0], 1, lambda: None)
    except _InterceptedCall as call:
        return call.arguments
    raise LoadError(f"{source.name}: {type(source.pipe).__name__} never called its transformer")
