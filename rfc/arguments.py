"""The timestep among a model's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "sigma", "noise_level")
"""Names by which denoising models call the argument that falls from noise to image during a generation."""


def timestep_argument(forward: Callable[..., Any]) -> str | None:
    """Name of the argument of `forward` that carries the timestep, None when no name says so."""
    names = inspect.signature(forward).parameters
    like = (name for name in names if "timestep" in name or name.endswith("_time"))
    return next((name for name in TIMESTEP_NAMES if name in names), next(like, None))


def timestep_value(value: Any) -> float | None:
    """Largest timestep of a batch as a host number (a device tensor is read back), None when there is none."""
    if isinstance(value, Tensor):
        count = value.numel()
        return float(value if count == 1 else value.detach().amax()) if count else None
    return float(value) if isinstance(value, int | float) else None
