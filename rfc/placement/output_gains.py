"""Output gains: what a sampler multiplies the model's output of each call by, on its way to the last sample."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch

IMPULSE = 1e-3
"""Small, so that a sampler that clips its pictures clips nothing."""


def output_gains(scheduler: Any, num_steps: int | None = None, **timesteps: Any) -> tuple[float, ...]:
    """d x_end / d out_j for each call j: a sampler's last sample is linear in the first and in the model's outputs.

    Measured by impulses, one sample for each, with the scheduler's own arithmetic (a copy of it; noise that it adds is the same for all).
    `num_steps` and `timesteps` as in `rfc.noise_levels`. Raises ValueError for a scheduler that this does not work with.
    """
    name = type(scheduler).__name__
    scheduler = copy.deepcopy(scheduler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if num_steps is not None or timesteps:
                scheduler.set_timesteps(**(timesteps if num_steps is None else {"num_inference_steps": num_steps} | timesteps))
            answered, silent = (_last(copy.deepcopy(scheduler), size) for size in (IMPULSE, 0.0))
        gains = (answered - silent).flatten(1).mean(1).double() / IMPULSE
    except Exception as error:
        raise ValueError(f"output gains: {name} cannot be asked: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not gains.isfinite().all():
        raise ValueError(f"output gains: those of {name} are no numbers: {gains.tolist()}")
    return tuple(gains.tolist())


def _last(scheduler: Any, impulse: float) -> torch.Tensor:
    """The last samples where the output of call j is an impulse in sample j, and zero everywhere else."""
    called = list(scheduler.timesteps)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    x = torch.zeros(len(called), 1, 1, 1)
    for call, timestep in enumerate(called):
        output = torch.zeros_like(x)
        output[call] = impulse
        more = {"generator": torch.Generator().manual_seed(call)} if takes_generator else {}
        x = scheduler.step(output, timestep, x, **more).prev_sample
    return x
