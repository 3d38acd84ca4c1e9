"""Parity: an engine and the model it was made from, over the same steps: equal phases, outputs within a stated tolerance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


def compare(engine: StepModel, model: StepModel, calls: Sequence[Mapping[str, Any]]) -> Parity:
    """Run both over the same calls, each in a generation of its own."""
    (own, record), (expected, expected_record) = _outputs(engine, calls), _outputs(model, calls)
    return Parity(list(record.phases), list(expected_record.phases), _errors(own, expected))


def timesteps_of(calls: Sequence[Mapping[str, Any]], name: str | None) -> list[float] | None:
    """The timestep of each call, in the argument `name`; None without one. Whole numbers may come twice."""
    return None if name is None else [timestep_value(call[name]) or 0.0 for call in calls]


@torch.no_grad()
def _outputs(runner: StepModel, calls: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], Record]:
    """The first output of each call, in a generation of its own, and its record."""
    with runner.generation(timesteps_of(calls, runner.timestep_argument)) as generation:
        outputs = [_first(runner(**call)).detach().clone() for call in calls]
    return outputs, generation.stats


def _errors(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """||a - b|| / ||b|| of each step."""
    return [float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)) for a, b in zip(outputs, expected, strict=True)]


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


@contextmanager
def exercised(engine: Engine, model: StepModel, arguments: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Calls of a few steps, in which both take every phase of their method for the time of the block."""
    own = model.method
    steps = steps_to_check(short := own.exercised())
    try:
        engine.method = model.method = short
        yield [moved(arguments, step, steps, engine.manifest.call.timestep) for step in range(steps)]
    finally:
        engine.method = model.method = own


def check_parity(engine: Engine, model: StepModel, arguments: Mapping[str, Any]) -> Parity:
    """ExportError where the engine does not do in a few forced steps what the model does: the state was lost, frozen or mixed up."""
    with exercised(engine, model, arguments) as calls:
        parity = compare(engine, model, calls)
        tolerance = TOLERANCE.get(dtype := engine.manifest.model.dtype, TOLERANCE["float32"])
        change = 0.0 if parity.worst <= tolerance else change_by_rounding(model, calls)
    if parity.phases != parity.expected_phases:
        raise ExportError(f"export: the engine decided {parity.phases}, the model {parity.expected_phases}; nothing was written")
    if not parity.worst <= tolerance:
        step = parity.errors.index(parity.worst)
        why = (
            f": the model's own output moves by {change:.1e} when its latent is rounded otherwise, as of a router that picks by scores: "
            f"no engine follows it in {dtype}; export the model in a wider type"
            if change > tolerance
            else ""
        )
        raise ExportError(
            f"export: step {step} ({parity.phases[step]}) of the engine is off by {parity.worst:.1e} of the model's output, at most "
            f"{tolerance:g} is rounding{why}; nothing was written"
        )
    return parity


def change_by_rounding(model: StepModel, calls: Sequence[Mapping[str, Any]]) -> float:
    """||f(x') - f(x)|| / ||f(x)||, the largest of a step: x' is the latent with one unit in the last place more or less, in three draws."""
    changes = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)

        def rounded(t: Tensor, generator: torch.Generator = generator) -> Tensor:
            up = torch.randint(0, 2, t.shape, generator=generator).to(t) * 2 - 1
            return t * (1 + torch.finfo(t.dtype).eps * up) if t.is_floating_point() else t

        otherwise = [{**call, latent_argument(call): pytree.tree_map_only(Tensor, rounded, call[latent_argument(call)])} for call in calls]
        changes += _errors(_outputs(model, otherwise)[0], _outputs(model, calls)[0])
    return max(changes)


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
