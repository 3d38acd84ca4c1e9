"""Manifest: what rfc.json says of an artefact; what is said twice has to agree."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from pydantic import model_validator

from rfc.phase import ESTIMATE, FULL
from rfc_export.specs import (
    BackendName,
    CallSpec,
    ConfigSpec,
    DecisionSpec,
    FileName,
    FileSpec,
    ModelSpec,
    Name,
    Part,
    PlanSpec,
    PoolSpec,
    ProgramSpec,
    Sha256,
    SignatureSpec,
    SlotSpecs,
    TargetSpec,
    WeightSpec,
)

SCHEMA_VERSION = 2
"""Rises whenever an older reader would misread a newer manifest."""

MANIFEST = "rfc.json"
WEIGHTS = "weights.safetensors"


class Manifest(Part):
    """rfc.json."""

    schema_version: Literal[2]
    created_at: str
    model: ModelSpec
    method: dict[str, Any]
    backend: BackendName
    config: ConfigSpec
    """How the model was transformed; its granularity is that of the programs."""
    programs: dict[Name, ProgramSpec]
    state: list[SlotSpecs]
    pools: list[PoolSpec]
    decision: DecisionSpec
    call: CallSpec
    plan: PlanSpec
    sampler: dict[str, Any] | None
    """What `rfc-fx run` needs to draw: the kind of model, its scheduler's configuration and defaults."""
    built_with: dict[str, str]
    target: TargetSpec
    files: dict[FileName, FileSpec]
    weights: dict[Name, WeightSpec]
    """Every tensor in weights.safetensors."""
    options: dict[str, bool | int | float | str | None]
    """Of the back end."""
    checksum: Sha256 | None = None
    """Of the manifest itself (`rfc_export.seal`); None while it is being made."""
    signature: SignatureSpec | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Manifest:
        for phase, program in self.programs.items():
            if program.file not in self.files:
                raise ValueError(f"programs.{phase}.file: {program.file} is not among the files")
        if WEIGHTS not in self.files:
            raise ValueError(f"files: {WEIGHTS} is missing")
        required = {FULL.name, ESTIMATE.name} if self.config.dispatch == "host" else {"STEP"}
        if missing := required - set(self.programs):
            raise ValueError(f"programs: {', '.join(sorted(missing))} missing")
        if self.decision.program is not None and self.decision.program not in self.programs:
            raise ValueError(f"decision.program: there is no program {self.decision.program}")
        granularity = self.config.granularity
        if granularity is None:
            raise ValueError("config.granularity: expected that of the programs, got None")
        if (own := self.method.get("granularity", granularity)) != granularity:
            raise ValueError(f"config.granularity: the method works on {own!r}, the programs on {granularity!r}")
        for argument in (self.call.latent, self.call.timestep):
            if argument is not None and argument not in {leaf.argument for leaf in self.call.leaves}:
                raise ValueError(f"call: no leaf lies in the argument {argument}")
        self._weights_are_there()
        self._pools_agree_with_slots()
        self._tensors_agree()
        return self

    def _weights_are_there(self) -> None:
        for phase, program in self.programs.items():
            if lost := [name for name in program.weights.values() if name not in self.weights]:
                raise ValueError(f"programs.{phase}: asks for weights that are not there: {', '.join(lost[:3])}")
        for leaf in self.call.leaves:
            spec = None if leaf.fixed is None else self.weights.get(leaf.fixed)
            if leaf.fixed is not None and (spec is None or (spec.dtype, spec.shape) != (leaf.dtype, leaf.shape)):
                raise ValueError(f"call: {leaf.argument}: {leaf.fixed} is not among the weights as {leaf.dtype} {leaf.shape}")

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
