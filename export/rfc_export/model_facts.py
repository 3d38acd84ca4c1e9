"""Facts of a model that a manifest keeps: its type and its configuration."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def dtype_of_model(model: nn.Module) -> torch.dtype:
    """Type of the weights."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(iter(model.parameters())).dtype


def plain_config(model: nn.Module) -> dict[str, Any]:
    """The model's configuration as far as JSON has words for it."""
    config = getattr(model, "config", {})
    return {key: value for key, value in dict(config).items() if _is_plain(value) and not key.startswith("_name_or_path")}


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | str)
