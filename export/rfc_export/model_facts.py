"""Facts of a model that a manifest keeps: its type and its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def dtype_of_model(model: nn.Module) -> torch.dtype:
    """Type of the weights."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(iter(model.parameters())).dtype


def computing_dtypes(model: nn.Module) -> set[torch.dtype]:
    """Types that the model computes in: those of its weights, but for numbers of one byte, which are stored alone."""
    return {weight.dtype for weight in model.parameters() if weight.is_floating_point() and weight.dtype.itemsize > 1}


NO_FACTS = ("_name_or_path", "_use_default_values")
"""What diffusers notes in a configuration beside the model: where it was read, and which settings nobody gave, in any order."""


def plain_config(model: nn.Module) -> dict[str, Any]:
    """The model's configuration as far as JSON has words for it."""
    facts = _fields(getattr(model, "config", None))
    return {key: value for key, value in facts.items() if _is_plain(value) and key not in NO_FACTS}


def _fields(config: Any) -> Mapping[str, Any]:
    """The fields of a configuration: diffusers' mapping, transformers' object (`to_dict`), or any object's own."""
    if callable(to_dict := getattr(config, "to_dict", None)):
        config = to_dict()
    if not isinstance(config, Mapping):
        config = getattr(config, "__dict__", {})
    return {key: value for key, value in config.items() if isinstance(key, str)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | str)
