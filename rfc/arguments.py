"""The timestep among a model's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "sigma", "noise_level")
"""Names by which denoising models call the argument that falls from noise to image during a generation."""


def timestep_argument(forward: Callable[..., Any]) -> str | None:
    """Name of the argument of `forward` that carries the timestep, None when no name says so."""
    return timestep_among(inspect.signature(forward).parameters)


def timestep_among(names: Collection[str]) -> str | None:
    """Name among these that says so, None when none does."""
    like = (name for name in names if "timestep" in name or name.endswith("_time"))
    return next((name for name in TIMESTEP_NAMES if name in names), next(like, None))


def timestep_value(value: Any) -> float | None:
    """Largest timestep of a batch as a host number (a device tensor is read back), None when there is none."""
    if isinstance(value, Tensor):
        return _largest(value) if value.numel() else None
    return float(value) if isinstance(value, int | float) else None


FEW = 64
"""Numbers that are compared faster in Python than by a reduction."""


def _largest(values: Tensor) -> float:
    if values.numel() > FEW:
        return float(values.detach().amax())
    return float(max(values.tolist() if values.dim() == 1 else values.flatten().tolist()))
