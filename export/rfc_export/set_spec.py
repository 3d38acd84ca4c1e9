"""Program sets: what a manifest says of the programs for one call signature; what is said twice has to agree."""

from __future__ import annotations

from math import prod
from typing import Literal

from pydantic import Field, model_validator

from rfc_export.specs import CallSpec, Count, DType, Name, Part, ProgramSpec, Shape


class SlotSpecs(Part):
    """A state tensor: zeros at the beginning, of one context each."""

    name: Name
    dtype: DType
    shape: Shape
    init: Literal["zeros"]
    written_by: list[Name]
    read_by: list[Name]
    pool: str | None
    """The pool it is a row of; None where it has memory of its own."""
    row: Count | None


class PoolSpec(Part):
    """Memory of state tensors that look alike, their rows next to the last axis."""

    name: Name
    dtype: DType
    shape: Shape
    slots: list[Name]


class DecisionSpec(Part):
    """Where the scalar is that decides, and the rule."""

    program: str | None
    """None: the rule needs no data."""
    index: Count
    rule: Name
    numbers: dict[str, list[float | Literal["inf"]]]


class PlanSpec(Part):
    """What a step costs and holds."""

    sites: list[Name]
    state_bytes: Count
    full_flops: Count
    estimate_flops: Count
    phase_flops: dict[Name, Count] = Field(default_factory=dict)
    """Of a step in each other phase."""


class ProgramSetSpec(Part):
    """The programs for one call signature, their state, and how a step is decided."""

    programs: dict[Name, ProgramSpec]
    state: list[SlotSpecs]
    pools: list[PoolSpec]
    decision: DecisionSpec
    call: CallSpec
    plan: PlanSpec

    @model_validator(mode="after")
    def _is_whole(self) -> ProgramSetSpec:
        if self.decision.program is not None and self.decision.program not in self.programs:
            raise ValueError(f"decision.program: there is no program {self.decision.program}")
        for argument in (self.call.latent, self.call.timestep):
            if argument is not None and argument not in {leaf.argument for leaf in self.call.leaves}:
                raise ValueError(f"call: no leaf lies in the argument {argument}")
        self._pools_agree_with_slots()
        self._tensors_agree()
        return self

    def _pools_agree_with_slots(self) -> None:
        pools = {pool.name: pool for pool in self.pools}
        slots = {slot.name: slot for slot in self.state}
        if len(pools) != len(self.pools) or len(slots) != len(self.state):
            raise ValueError("state: a name occurs twice")
        for slot in self.state:
            if (slot.pool is None) != (slot.row is None):
                raise ValueError(f"state.{slot.name}: a pool needs a row, and a row a pool")
            if slot.pool is None or slot.row is None:
                continue
            pool = pools.get(slot.pool)
            if pool is None or slot.row >= len(pool.slots) or pool.slots[slot.row] != slot.name:
                raise ValueError(f"state.{slot.name}: is not row {slot.row} of a pool {slot.pool}")
            if pool.dtype != slot.dtype or prod(pool.shape) != len(pool.slots) * prod(slot.shape):
                raise ValueError(f"state.{slot.name}: {slot.dtype} {slot.shape} is no row of {pool.dtype} {pool.shape}")
        for pool in self.pools:
            if lost := [name for name in pool.slots if name not in slots or slots[name].pool != pool.name]:
                raise ValueError(f"pools.{pool.name}: no state {lost[0]} lies in it")

    def _tensors_agree(self) -> None:
        """Where a program's tensors are described twice, both say the same."""
        known: dict[tuple[str, str], tuple[str, list[int]]] = {("pool", pool.name): (pool.dtype, pool.shape) for pool in self.pools}
        for slot in self.state:
            known |= {(kind, slot.name): (slot.dtype, slot.shape) for kind in ("state", "next", "progress", "log")}
        for leaf in self.call.leaves:
            if leaf.placeholder is not None and leaf.dtype is not None and leaf.shape is not None:
                known["input", leaf.placeholder] = (leaf.dtype, leaf.shape)
        carried = {out.name: (out.dtype, out.shape) for program in self.programs.values() for out in program.outputs if out.kind == "carry"}
        known |= {("carry", name): tensor for name, tensor in carried.items()}
        for phase, program in self.programs.items():
            for tensor in (*program.inputs, *program.outputs):
                if tensor.kind in ("clock", "number", "numbers", "output", "decision"):
                    continue
                described = known.get((tensor.kind, tensor.name))
                if described != (tensor.dtype, tensor.shape):
                    other = "there is none" if described is None else f"elsewhere it is {described[0]} {described[1]}"
                    raise ValueError(
                        f"programs.{phase}: takes or gives {tensor.kind} {tensor.name}, {tensor.dtype} {tensor.shape}; {other}"
                    )
