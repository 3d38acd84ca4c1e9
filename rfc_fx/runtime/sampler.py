"""What is known of the sampler: the timesteps of the coming generation."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rfc
from rfc.method import Method

log = logging.getLogger("rfc_fx")


READINGS: tuple[Callable[[Tensor, torch.dtype, float], Tensor], ...] = (
    lambda t, dtype, most: t.to(dtype),
    lambda t, dtype, most: t.to(dtype) / most,
    lambda t, dtype, most: (t / most).to(dtype),
    lambda t, dtype, most: (most - t.to(dtype)) / most,
    lambda t, dtype, most: 1 - t.to(dtype) / most,
    lambda t, dtype, most: most - t.to(dtype),
)
"""What pipelines make of a scheduler's timesteps before they hand them to the model; `most` are the training steps."""


LEADING = 3
"""Steps of a generation that compute their own modulation: after so many it is known whether the sampler's timestep rises."""


def default_method(source: Any) -> Method:
    """`rfc.LogSNR` at the noise levels of a pipeline's scheduler, or of a scheduler, as they stand; without one `rfc.RFC()`.

    Raises ValueError for a scheduler without noise levels or whose timesteps are not set.
    """
    if source is None:
        return rfc.RFC()
    try:
        return rfc.LogSNR(getattr(source, "scheduler", source))
    except ValueError as error:
        raise ValueError(f"transform: source: {error}; or pass a method, such as rfc.LogSNR(scheduler, steps)") from error


class Following:
    """A pipeline, or a scheduler, whose timesteps the coming generations will have."""

    def __init__(self, source: Any) -> None:
        if not hasattr(getattr(source, "scheduler", source), "set_timesteps"):
            raise TypeError(f"follow: expected a pipeline with a scheduler, or a scheduler, got {type(source).__name__}")
        self._source = weakref.ref(source)

    def timesteps(self, timestep: float, step: int, dtype: torch.dtype) -> Tensor | None:
        """The timesteps of a generation whose step number `step` has this one, as the model is called with them; None where unknown."""
        timesteps = getattr(self._scheduler(), "timesteps", None)
        if not isinstance(timesteps, Tensor):
            return None
        most = float(getattr(self._scheduler().config, "num_train_timesteps", 1000))
        with torch.inference_mode(False):
            for read in READINGS:
                called = read(timesteps.detach().cpu(), dtype, most)
                matches = (called.double() == timestep).nonzero().flatten().tolist()  # several where a sampler calls twice per step
                if matches:
                    index = next((match for match in matches if match >= step), matches[-1])
                    return called[max(0, index - step) :].clone()
        log.info("follow: the model is called with timestep %g, which is none of the scheduler's; computed step by step", timestep)
        return None

    def _scheduler(self) -> Any:
        source = self._source()
        return getattr(source, "scheduler", source)
