"""Noise levels: what a sampler's scheduler says about each call of the model, before it runs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.schedules.base import NoiseLevels, checked_count


def noise_levels(scheduler: Any, num_steps: int | None = None, **timesteps: Any) -> NoiseLevels:
    """The noise levels of a scheduler of diffusers, or of one with the same attributes; the scheduler itself is not changed.

    `num_steps` and `timesteps` are what the pipeline passes to `set_timesteps` (`mu`, `sigmas`); without any the scheduler is taken
    as it stands, as after a generation of the pipeline. Read are `timesteps` with `alphas_cumprod`, or `sigmas`: those of flow matching are
    the share of noise (alpha = 1 - sigma), all others sigma / alpha. Raises ValueError for a scheduler that has none of them, and for what
    its `set_timesteps` refuses.
    """
    name = type(scheduler).__name__
    if not callable(getattr(scheduler, "set_timesteps", None)):
        raise ValueError(f"noise levels: expected a scheduler such as pipe.scheduler, got {name}")
    if num_steps is not None:
        checked_count("noise levels", "num_steps", num_steps, 1)
    scheduler = copy.deepcopy(scheduler)
    if num_steps is not None or timesteps:
        _set(scheduler, name, timesteps if num_steps is None else {"num_inference_steps": num_steps} | timesteps)
    elif getattr(scheduler, "num_inference_steps", None) is None:
        raise ValueError(f"noise levels: {name} was not told how many steps there are; pass num_steps, or call set_timesteps first")
    is_flow = False
    called = torch.as_tensor(scheduler.timesteps).double().cpu()
    cumulative, sigmas = (getattr(scheduler, kind, None) for kind in ("alphas_cumprod", "sigmas"))
    if sigmas is not None and len(sigmas) == len(called) + 1:
        sigma = torch.as_tensor(sigmas).double().cpu()
        is_flow = is_flow_scheduler(scheduler)
        levels = (1 - sigma).log() - sigma.log() if is_flow else -sigma.log()
    elif cumulative is not None:
        levels = _of_alphas(torch.as_tensor(cumulative).double().cpu(), called, getattr(scheduler, "final_alpha_cumprod", None))
    else:
        raise ValueError(
            f"noise levels: {name} has neither alphas_cumprod nor one of sigmas for each of its {len(called)} timesteps; "
            "say them yourself: rfc.LogSNR(lambdas=...), or use rfc.Chebyshev"
        )
    if levels.isnan().any():
        raise ValueError(f"noise levels: those of {name} are no numbers: {levels.tolist()}; use rfc.Chebyshev")
    *lambdas, end = levels.tolist()
    return NoiseLevels(tuple(lambdas), None if end == torch.inf else end, is_flow)


def _set(scheduler: Any, name: str, arguments: dict[str, Any]) -> None:
    try:
        scheduler.set_timesteps(**arguments)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"noise levels: {name}.set_timesteps({', '.join(arguments)}) failed: {reason}; pass what the pipeline passes, "
            "as in rfc.LogSNR(scheduler, num_steps, mu=...), or take the scheduler as it stands after a generation, without num_steps"
        ) from error


def is_flow_scheduler(scheduler: Any) -> bool:
    """Whether a scheduler's sigmas are shares of noise (alpha = 1 - sigma): said by its settings, or it has no others."""
    if getattr(getattr(scheduler, "config", None), "use_flow_sigmas", False):
        return True
    sigmas = getattr(scheduler, "sigmas", None)
    return sigmas is not None and getattr(scheduler, "alphas_cumprod", None) is None and bool((torch.as_tensor(sigmas) <= 1).all())


def _of_alphas(cumulative: Float[Tensor, " T"], called: Float[Tensor, " S"], final: Any) -> Float[Tensor, " R"]:
    """One more than calls; between two trained timesteps alpha^2 is interpolated."""
    below = called.floor().long().clamp(0, len(cumulative) - 1)
    above = (below + 1).clamp(max=len(cumulative) - 1)
    squared = torch.lerp(cumulative[below], cumulative[above], (called - below).clamp(0, 1))
    end = torch.as_tensor(1.0 if final is None else final).double().reshape(1).cpu()
    squared = torch.cat([squared, end])
    return (squared.log() - (1 - squared).log()) / 2
