"""Specs: the parts of a manifest, each a frozen record; a field with an impossible value is refused by its name."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from rfc_export.methods import DTYPES
from rfc_fx.ir.config import Config

MOST_ELEMENTS = 1 << 40
"""A shape with more elements is no shape."""

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Text = Annotated[str, Field(max_length=1 << 20)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
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
DType = Annotated[str, AfterValidator(_known_dtype)]
BackendName = Literal["aoti", "onnx", "tensorrt"]


class Part(BaseModel):
    """A record that refuses unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TensorSpec(Part):
    """Name, type and shape of a tensor that enters or leaves a program."""

    kind: Literal["input", "carry", "state", "next", "pool", "clock", "number", "progress", "log", "numbers", "output", "decision"]
    name: Name
    dtype: DType
    shape: Shape


class FileSpec(Part):
    """A file of the artefact."""

    sha256: Sha256
    bytes: Count


class WeightSpec(Part):
    """A tensor in weights.safetensors, and the checksum of its bytes."""

    dtype: DType
    shape: Shape
    sha256: Sha256


class SignatureSpec(Part):
    """Who signed the manifest, and the signature (`rfc_export.seal`)."""

    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ed25519: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class ProgramSpec(Part):
    """A program: where it is, what to pass in order and what comes back in order."""

    file: FileName
    entry: Name
    """Name of the program inside its file."""
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weights: dict[Name, Name]
    """Name in the program -> name in weights.safetensors."""
    flops: Count


class LeafSpec(Part):
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


class CallSpec(Part):
    """The call that an engine answers."""

    parameters: list[Name]
    """Of the model's forward, in order."""
    defaults: dict[str, bool | int | float | str | None]
    tree: Text
    """How the flat arguments lie in the call (torch's JSON of a pytree)."""
    leaves: list[LeafSpec]
    outputs: Text
    """How the flat outputs lie in what is returned."""
    latent: Name
    timestep: str | None
    """Argument that carries the timestep."""

    @property
    def latent_shape(self) -> list[int]:
        """Of the argument `latent`; empty where that is no tensor."""
        return next((leaf.shape for leaf in self.leaves if leaf.argument == self.latent and leaf.shape), [])


class ModelSpec(Part):
    """What was exported."""

    model_class: Name
    config: dict[str, Any]
    dtype: DType
    weights_sha256: Sha256


class TargetSpec(Part):
    """What the programs run on."""

    device: Literal["cpu", "cuda"]
    name: str
    compute_capability: str | None
    cpu_isa: str | None
