"""The solvers of diffusers at any levels: their own arithmetic, our times and sigmas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.truth.converged import Predict
from benchmarks.truth.levels import SPACINGS, Levels, Reals
from benchmarks.truth.models import Images

ALMOST = 1e-6
"""What a first share of noise of 1, or a last of 0, is moved by where a solver takes its logarithm."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A solver of diffusers."""

    make: Callable[[Any, bool], Any]
    """Makes the scheduler from the model's own; of a flow: True."""
    spacings: tuple[str, ...] = ("uniform", "log-SNR", "log-SNR within 3", "Karras", "beta")
    calls: int = 1
    """Of the model in a step; the last step has one."""
    ends: float = 0.0
    """The last sigma."""

    def steps(self, evaluations: int) -> int:
        """The most steps with so many evaluations."""
        return (evaluations + self.calls - 1) // self.calls


def _multistep(kind: str, **options: Any) -> Callable[[Any, bool], Any]:
    def make(scheduler: Any, is_flow: bool) -> Any:
        import diffusers

        made = getattr(diffusers, kind)
        if is_flow:
            return made(prediction_type="flow_prediction", use_flow_sigmas=True, **options)
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
        return made(**{name: scheduler.config[name] for name in names}, **options)

    return make


def _heun(scheduler: Any, is_flow: bool) -> Any:
    import diffusers

    if is_flow:
        return diffusers.FlowMatchHeunDiscreteScheduler()
    return _multistep("HeunDiscreteScheduler")(scheduler, False)


SOLVERS: dict[str, Solver] = {
    "DDIM (Euler)": Solver(make=_multistep("DPMSolverMultistepScheduler", solver_order=1)),
    "Heun": Solver(make=_heun, calls=2),
    "DPM-Solver++ 2M": Solver(make=_multistep("DPMSolverMultistepScheduler", solver_order=2)),
    "DPM-Solver++ 3M": Solver(make=_multistep("DPMSolverMultistepScheduler", solver_order=3)),
    "UniPC": Solver(make=_multistep("UniPCMultistepScheduler", solver_order=2)),
    "UniPC 3": Solver(make=_multistep("UniPCMultistepScheduler", solver_order=3)),
    "DEIS": Solver(make=_multistep("DEISMultistepScheduler", solver_order=3), ends=1e-4),
}


def spacings_of(solver: Solver, is_flow: bool) -> tuple[str, ...]:
    """The spacings that it is tried with: those of flows have shifts too."""
    return (*solver.spacings, "shift 3", "exponential") if is_flow else solver.spacings


class AtTimes:
    """A scheduler of diffusers whose steps are at given times; stands where the scheduler stood."""

    def __init__(self, scheduler: Any, levels: Levels, times: Reals, *, calls: int = 1, ends: float = 0.0) -> None:
        self.scheduler, self.levels, self.calls, self.ends = scheduler, levels, calls, ends
        self.times = np.asarray(times, dtype=np.float64)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """As the scheduler's own, at the given times."""
        inner = self.scheduler
        inner.set_timesteps(len(self.times), device=device)
        sigmas = self.levels.sigmas(self.times)
        if self.levels.is_flow:
            sigmas = np.minimum(sigmas, 1 - ALMOST)
        times = np.repeat(self.times, self.calls)[self.calls - 1 :] if self.calls > 1 else self.times
        sigmas = np.repeat(sigmas, self.calls)[self.calls - 1 :] if self.calls > 1 else sigmas
        inner.sigmas = torch.from_numpy(np.append(sigmas, self.ends)).float()
        inner.timesteps = torch.from_numpy(times).float()
        inner.num_inference_steps = len(self.times)

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # of a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self.scheduler, name)


def at_times(solver: Solver, scheduler: Any, times: Reals) -> AtTimes:
    """The solver at these times of the model's own levels."""
    levels = Levels.of(scheduler)
    return AtTimes(solver.make(scheduler, levels.is_flow), levels, times, calls=solver.calls, ends=solver.ends)


def spaced(solver: Solver, scheduler: Any, spacing: str, steps: int) -> AtTimes:
    """The solver at levels of a spacing."""
    return at_times(solver, scheduler, SPACINGS[spacing](Levels.of(scheduler), steps))


def draw(predict: Predict, scheduler: Any, noise: Images, steps: int, **timesteps: Any) -> Images:
    """The samples of a scheduler of diffusers that begin with `noise`."""
    if timesteps:
        scheduler.set_timesteps(steps, **timesteps)
    else:
        scheduler.set_timesteps(steps)
    x: Tensor = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    scale: Callable[[Tensor, Any], Tensor] = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps:
        x = scheduler.step(predict(scale(x, t), float(t)), t, x).prev_sample
    return x
