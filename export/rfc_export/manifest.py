"""Manifest: what rfc.json says of an artefact. A field that cannot be is refused by its name; what is said twice has to agree."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from rfc_export.methods import DTYPES
from rfc_fx.ir.config import Config

SCHEMA_VERSION = 1
"""Rises whenever an older reader would misread a newer manifest."""

MANIFEST = "rfc.json"
WEIGHTS = "weights.safetensors"

MOST_ELEMENTS = 1 << 40
"""A shape with more elements is no shape."""

Name = Annotated[str, Field(min_length=1, max_length=1000)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _possible_shape(shape: list[int]) -> list[int]:
    if prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"{prod(shape):.1e} elements are too many")
    return shape


Shape = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 32)]], Field(max_length=16), AfterValidator(_possible_shape)]


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"expected one of {', '.join(DTYPES)}")
    return name


DType = Annotated[str, AfterValidator(_known_dtype)]
BackendName = Literal["aoti", "onnx", "tensorrt"]


def _config(value: Any) -> Config:
    if isinstance(value, Config):
        return value
    if not isinstance(value, dict):
        raise ValueError("expected the fields of a configuration")
    try:
        return Config.from_dict(value)
    except TypeError as error:
        raise ValueError(str(error)) from error


ConfigSpec = Annotated[Config, PlainValidator(_config), PlainSerializer(Config.as_dict)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TensorSpec(_Part):
    """Name, type and shape of a tensor that enters or leaves a program."""

    kind: Literal["input", "carry", "state", "next", "pool", "clock", "number", "progress", "log", "numbers", "output", "decision"]
    name: Name
    dtype: DType
    shape: Shape


class FileSpec(_Part):
    """A file of the artefact."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class ProgramSpec(_Part):
    """A program: where it is, what to pass in order and what comes back in order."""

    file: FileName
    entry: Name
    """Name of the program inside its file."""
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weights: dict[str, str]
    """Name in the program -> name in weights.safetensors."""
    flops: Annotated[int, Field(ge=0)]


class SlotSpecs(_Part):
    """A state tensor: zeros at the beginning, of one context each."""

    name: Name
    dtype: DType
    shape: Shape
    init: Literal["zeros"]
    written_by: list[Name]
    read_by: list[Name]
    pool: str | None
    """The pool it is a row of; None where it has memory of its own."""
    row: Annotated[int, Field(ge=0)] | None


class PoolSpec(_Part):
    """Memory of state tensors that look alike, their rows next to the last axis."""

    name: Name
    dtype: DType
    shape: Shape
    slots: list[Name]


class LeafSpec(_Part):
    """One flat argument of a call: a tensor of this type and shape, or exactly this value."""

    argument: Name
    dtype: DType | None
    shape: Shape | None
    value: bool | int | float | str | None
    fixed: str | None
    """Name in weights.safetensors of a tensor whose values the programs were made for."""
    placeholder: str | None
    """What programs call it; None where they do not read it."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> LeafSpec:
        if (self.dtype is None) != (self.shape is None):
            raise ValueError("a tensor has dtype and shape, a value neither")
        if self.dtype is not None and self.value is not None:
            raise ValueError("a tensor has no value")
        if self.dtype is None and not self.fixed is self.placeholder is None:
            raise ValueError("only a tensor is fixed or has a placeholder")
        return self


class CallSpec(_Part):
    """The call that an engine answers."""

    parameters: list[Name]
    """Of the model's forward, in order."""
    defaults: dict[str, bool | int | float | str | None]
    tree: str
    """How the flat arguments lie in the call (torch's JSON of a pytree)."""
    leaves: list[LeafSpec]
    outputs: str
    """How the flat outputs lie in what is returned."""
    latent: Name
    timestep: str | None
    """Argument that carries the timestep."""


class ModelSpec(_Part):
    """What was exported."""

    model_class: Name
    config: dict[str, Any]
    dtype: DType
    weights_sha256: Sha256


class DecisionSpec(_Part):
    """Where the scalar is that decides, and the rule."""

    program: str | None
    """None: the rule needs no data."""
    index: Annotated[int, Field(ge=0)]
    rule: Name
    numbers: dict[str, list[float | Literal["inf"]]]


class TargetSpec(_Part):
    """What the programs run on."""

    device: Literal["cpu", "cuda"]
    name: str
    compute_capability: str | None
    cpu_isa: str | None


class PlanSpec(_Part):
    """What a step costs and holds."""

    sites: list[Name]
    state_bytes: Annotated[int, Field(ge=0)]
    full_flops: Annotated[int, Field(ge=0)]
    estimate_flops: Annotated[int, Field(ge=0)]
    phase_flops: dict[Name, Annotated[int, Field(ge=0)]] = {}
    """Of a step in each other phase."""


class Manifest(_Part):
    """rfc.json."""

    schema_version: Literal[1]
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
    options: dict[str, bool | int | float | str | None]
    """Of the back end."""

    @model_validator(mode="after")
    def _is_whole(self) -> Manifest:
        for phase, program in self.programs.items():
            if program.file not in self.files:
                raise ValueError(f"programs.{phase}.file: {program.file} is not among the files")
        if WEIGHTS not in self.files:
            raise ValueError(f"files: {WEIGHTS} is missing")
        wanted = {"FULL", "ESTIMATE"} if self.config.dispatch == "host" else {"STEP"}
        if missing := wanted - set(self.programs):
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
        self._pools_hold_their_slots()
        self._programs_take_what_there_is()
        return self

    def _pools_hold_their_slots(self) -> None:
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

    def _programs_take_what_there_is(self) -> None:
        """Where a program's tensors are described twice, both say the same."""
        known: dict[tuple[str, str], tuple[str, list[int]]] = {("pool", pool.name): (pool.dtype, pool.shape) for pool in self.pools}
        for slot in self.state:
            known |= {(kind, slot.name): (slot.dtype, slot.shape) for kind in ("state", "next", "progress", "log")}
        for leaf in self.call.leaves:
            if leaf.placeholder is not None and leaf.dtype is not None and leaf.shape is not None:
                known["input", leaf.placeholder] = (leaf.dtype, leaf.shape)
        made = {out.name: (out.dtype, out.shape) for program in self.programs.values() for out in program.outputs if out.kind == "carry"}
        known |= {("carry", name): tensor for name, tensor in made.items()}
        for phase, program in self.programs.items():
            for tensor in (*program.inputs, *program.outputs):
                if tensor.kind in ("clock", "number", "numbers", "output", "decision"):
                    continue
                found = known.get((tensor.kind, tensor.name))
                if found != (tensor.dtype, tensor.shape):
                    other = "there is none" if found is None else f"elsewhere it is {found[0]} {found[1]}"
                    raise ValueError(
                        f"programs.{phase}: takes or gives {tensor.kind} {tensor.name}, {tensor.dtype} {tensor.shape}; {other}"
                    )
