"""Loaded: the programs of an artefact, and what the host must know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rfc.method import Method
from rfc.phase import ESTIMATE, FULL
from rfc.state import SlotSpec
from rfc_export.backends import Run
from rfc_export.calls import ExpectedCall
from rfc_export.errors import ArtifactError
from rfc_export.manifest import Manifest
from rfc_export.methods import dtype_of
from rfc_export.set_spec import ProgramSetSpec
from rfc_export.specs import ProgramSpec
from rfc_fx.ir.layout import Layout, Pool
from rfc_fx.ir.plan import Plan, SlotRow
from rfc_fx.ir.program import CLOCK_SPECS, Argument, as_read, unflattener


@dataclass(frozen=True)
class LoadedProgram:
    """A program of an artefact, as the host runs it: first the inputs, then the memory for new state."""

    phase: str
    spec: ProgramSpec
    call: Run
    batched: None = None

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """What to pass, in order."""
        inputs: list[Any] = [(spec.kind, spec.name) for spec in self.spec.inputs]
        return (*inputs, *(("next", spec.name) for spec in self.spec.outputs if spec.kind == "next"))

    @cached_property
    def results(self) -> tuple[str, ...]:
        """What comes back, in order."""
        named = {"decision": "decision", "output": "output:{}", "carry": "carry:{}"}
        return tuple(named[spec.kind].format(spec.name) for spec in self.spec.outputs if spec.kind in named)

    @cached_property
    def returned(self) -> tuple[str, ...]:
        """Slots whose new value it returns."""
        return tuple(spec.name for spec in self.spec.outputs if spec.kind == "next")

    @cached_property
    def _next(self) -> list[int]:
        return [i for i, spec in enumerate(self.spec.outputs) if spec.kind == "next"]

    @cached_property
    def _placed(self) -> list[bool]:
        return [spec.kind in ("state", "pool", "progress", "log") for spec in self.spec.inputs]

    def run(self, *given: Tensor) -> Sequence[Tensor]:
        """Run it. What is no state is made contiguous first: compiled code takes it to be, and an expanded timestep is not."""
        count = len(self.spec.inputs)
        inputs = [t if fixed else t.contiguous() for t, fixed in zip(given[:count], self._placed, strict=True)]
        return self.call(inputs, dict(zip(self._next, given[count:], strict=True)))


@dataclass(frozen=True)
class LoadedSet:
    """The programs of an artefact for one call, and what the host must know of them."""

    manifest: Manifest
    spec: ProgramSetSpec
    programs: Mapping[str, LoadedProgram]
    weights: Mapping[str, Tensor]
    """All of the engine's, held for as long as programs read them."""
    layout: Layout
    plan: Plan
    device: torch.device
    timestep: str | None
    expected: ExpectedCall

    @cached_property
    def placeholders(self) -> list[Argument]:
        """The tensor arguments by the names that programs have for them."""
        return [("input", leaf.placeholder) for leaf in self.spec.call.leaves if leaf.placeholder is not None]

    @property
    def latent(self) -> str:
        """Name of the argument that the sampler moves."""
        return self.spec.call.latent

    @cached_property
    def clock_size(self) -> int:
        """Numbers of the clock that the programs read."""
        read = (spec.shape[0] for program in self.spec.programs.values() for spec in program.inputs if spec.kind == "clock")
        return next(read, len(CLOCK_SPECS))

    @property
    def counts_itself(self) -> bool:
        """Whether step numbers and decisions are state of the program."""
        return self.manifest.config.dispatch == "cond"

    @property
    def returns_state(self) -> bool:
        """Whether new state is written beside the old, and takes its place afterwards."""
        return any(spec.kind == "next" for program in self.programs.values() for spec in program.spec.outputs)

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        """The tensor arguments in the order of the placeholders."""
        return [as_read(leaf) for leaf, spec in zip(leaves, self.spec.call.leaves, strict=True) if spec.placeholder is not None]

    @cached_property
    def unflatten(self) -> Callable[[Sequence[Tensor]], Any]:
        """Makes what the model's forward returns of flat outputs."""
        return unflattener(self.expected.outputs)


def check_phases(manifest: Manifest, method: Method) -> None:
    """ArtifactError where the method has a phase that a call has no program for."""
    phases = method.schedule.branches
    for number, one in enumerate(manifest.sets):
        there = {FULL.name, ESTIMATE.name} if manifest.config.dispatch == "cond" else set(one.programs)
        if missing := [phase for phase in phases if phase not in there and one.plan.sites]:
            raise ArtifactError(
                f"method.schedule: has the phases {', '.join(phases)}, there is no program for {', '.join(missing)} (sets.{number})"
            )


def loaded_set(
    manifest: Manifest, number: int, programs: dict[str, LoadedProgram], weights: Mapping[str, Tensor], device: torch.device
) -> LoadedSet:
    """The programs of one call with layout, plan and call as the manifest describes them."""
    spec = manifest.sets[number]
    call, planned = spec.call, spec.plan
    fixed = {leaf.fixed: weights[leaf.fixed] for leaf in call.leaves if leaf.fixed is not None}
    slots = {slot.name: SlotSpec(tuple(slot.shape), dtype_of(slot.name, slot.dtype)) for slot in spec.state}
    pools = {
        pool.name: Pool(pool.name, tuple(pool.slots), SlotSpec(tuple(pool.shape), dtype_of(pool.name, pool.dtype))) for pool in spec.pools
    }
    places = {slot.name: (pools[slot.pool], slot.row or 0) for slot in spec.state if slot.pool is not None}
    rows = [
        SlotRow(name, slot.shape, slot.dtype, torch.empty(slot.shape, dtype=slot.dtype, device="meta").nbytes)
        for name, slot in slots.items()
    ]
    held = sum(row.bytes for row in rows)
    plan = Plan(planned.sites, rows, held, planned.full_flops, planned.estimate_flops, phase_flops=dict(planned.phase_flops))
    timestep = next((leaf.placeholder for leaf in call.leaves if leaf.argument == call.timestep), None)
    layout = Layout(slots, tuple(pools.values()), places)
    expected = ExpectedCall(call, manifest.model.model_class, fixed)
    return LoadedSet(manifest, spec, programs, weights, layout, plan, device, timestep, expected)
