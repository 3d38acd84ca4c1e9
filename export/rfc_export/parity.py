"""Parity: an engine and the model it was made from, over the same steps: equal phases, outputs within a stated tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from rfc.arguments import timestep_value
from rfc.method import Method
from rfc.phase import FULL
from rfc.record import Record
from rfc_export.errors import ExportError
from rfc_export.runtime import Engine
from rfc_fx.capture.export import latent_argument
from rfc_fx.runtime.step_model import StepModel

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest relative error ||engine - model|| / ||model|| of a step: other kernels round in another order, and estimates extrapolate that."""

MOST_STEPS = 24
"""Steps of the check at export, at most."""


@dataclass(frozen=True)
class Parity:
    """Phases of an engine and of its model over the same steps, and how far their outputs differ."""

    phases: list[str]
    expected_phases: list[str]
    errors: list[float]
    """||engine - model|| / ||model|| of each step's first output."""

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors)


def moved(arguments: Mapping[str, Any], step: int, steps: int, timestep: str | None) -> dict[str, Any]:
    """The call of one step of a generation: the latent drifts a little from step to step, the timestep falls."""
    latent = latent_argument(arguments)
    generator = torch.Generator().manual_seed(step)

    def drift(x: Any) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda t: t + 0.05 * (step + 1) * torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t, x
        )

    def fall(t: Any) -> Any:
        return (t.double() * (1 - step / (2 * steps))).to(t.dtype) if isinstance(t, Tensor) else t

    return {name: drift(value) if name == latent else fall(value) if name == timestep else value for name, value in arguments.items()}


@torch.no_grad()
def compare(engine: StepModel, model: StepModel, calls: Sequence[Mapping[str, Any]]) -> Parity:
    """Run both over the same calls, each in a generation of its own."""
    outputs = []
    records: list[Record] = []
    for runner in (engine, model):
        name = runner.timestep_argument
        timesteps = None if name is None else [timestep_value(call[name]) or 0.0 for call in calls]  # whole numbers may come twice
        with runner.generation(timesteps) as generation:
            outputs.append([_first(runner(**call)).detach().clone() for call in calls])
        records.append(generation.stats)
    errors = [float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)) for a, b in zip(*outputs, strict=True)]
    return Parity(list(records[0].phases), list(records[1].phases), errors)


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


def check_parity(engine: Engine, model: StepModel, arguments: Mapping[str, Any]) -> Parity:
    """ExportError where the engine does not do in a few forced steps what the model does: the state was lost, frozen or mixed up."""
    own = model.method
    short = own.exercised()
    steps = steps_to_check(short)
    calls = [moved(arguments, step, steps, engine.manifest.call.timestep) for step in range(steps)]
    try:
        engine.method = model.method = short
        parity = compare(engine, model, calls)
    finally:
        engine.method = model.method = own
    tolerance = TOLERANCE.get(engine.manifest.model.dtype, TOLERANCE["float32"])
    if parity.phases != parity.expected_phases:
        raise ExportError(f"export: the engine decided {parity.phases}, the model {parity.expected_phases}; nothing was written")
    if not parity.worst <= tolerance:
        step = parity.errors.index(parity.worst)
        raise ExportError(
            f"export: step {step} ({parity.phases[step]}) of the engine is off by {parity.worst:.1e} of the model's output, at most "
            f"{tolerance:g} is rounding; nothing was written"
        )
    return parity


def steps_to_check(method: Method) -> int:
    """Enough steps for every phase, a full step after a skipped one and a skipped one after that, if the schedule comes to them soon."""
    generation, numbers = Record(), method.schedule.numbers()
    remaining = [False, True, False]
    for step in range(MOST_STEPS):
        is_full = generation.decide(method.schedule, numbers, 0.0, None) == FULL.name
        if remaining and is_full is remaining[0]:
            remaining.pop(0)
        if not remaining and {*generation.phases} >= {*method.schedule.branches}:
            return step + 1
    return MOST_STEPS
