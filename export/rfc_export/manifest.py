"""Manifest: what rfc.json says of an artefact; what is said twice has to agree."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rfc.phase import ESTIMATE, FULL
from rfc_export.set_spec import ProgramSetSpec
from rfc_export.specs import (
    BackendName,
    CallSpec,
    ConfigSpec,
    FileName,
    FileSpec,
    ModelSpec,
    Name,
    Part,
    Sha256,
    SignatureSpec,
    TargetSpec,
    WeightSpec,
)

SCHEMA_VERSION = 3
"""Rises whenever an older reader would misread a newer manifest."""

MANIFEST = "rfc.json"
WEIGHTS = "weights.safetensors"

MOST_SETS = 256
"""Call signatures of an engine, at most."""


def call_key(call: CallSpec, weights: Mapping[str, WeightSpec]) -> Hashable:
    """What tells one call from another: how it is nested, types and shapes, and the values that programs were made for."""
    leaves = [
        (leaf.argument, leaf.dtype, tuple(leaf.shape or ()), type(leaf.value), leaf.value, leaf.fixed and weights[leaf.fixed].sha256)
        for leaf in call.leaves
    ]
    return call.tree, tuple(leaves)


class Manifest(Part):
    """rfc.json."""

    schema_version: Literal[3]
    created_at: str
    model: ModelSpec
    method: dict[str, Any]
    backend: BackendName
    config: ConfigSpec
    """How the model was transformed; its granularity is that of the programs."""
    sets: Annotated[list[ProgramSetSpec], Field(min_length=1, max_length=MOST_SETS)]
    """The programs for each call signature that the engine answers."""
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

    @property
    def call(self) -> CallSpec:
        """The first call; parameters, defaults, latent and timestep are those of all."""
        return self.sets[0].call

    @model_validator(mode="after")
    def _is_whole(self) -> Manifest:
        if WEIGHTS not in self.files:
            raise ValueError(f"files: {WEIGHTS} is missing")
        granularity = self.config.granularity
        if granularity is None:
            raise ValueError("config.granularity: expected that of the programs, got None")
        if (own := self.method.get("granularity", granularity)) != granularity:
            raise ValueError(f"config.granularity: the method works on {own!r}, the programs on {granularity!r}")
        for number, one in enumerate(self.sets):
            self._has_what_it_needs(f"sets.{number}", one)
        self._calls_are_of_one_model()
        return self

    def _has_what_it_needs(self, where: str, one: ProgramSetSpec) -> None:
        """Programs, files and weights of a set are there."""
        required = {"STEP"} if self.config.dispatch == "cond" else {FULL.name, ESTIMATE.name} if one.plan.sites else {FULL.name}
        if missing := required - set(one.programs):
            raise ValueError(f"{where}.programs: {', '.join(sorted(missing))} missing")
        for phase, program in one.programs.items():
            if program.file not in self.files:
                raise ValueError(f"{where}.programs.{phase}.file: {program.file} is not among the files")
            if lost := [name for name in program.weights.values() if name not in self.weights]:
                raise ValueError(f"{where}.programs.{phase}: asks for weights that are not there: {', '.join(lost[:3])}")
        for leaf in one.call.leaves:
            spec = None if leaf.fixed is None else self.weights.get(leaf.fixed)
            if leaf.fixed is not None and (spec is None or (spec.dtype, spec.shape) != (leaf.dtype, leaf.shape)):
                raise ValueError(f"{where}.call: {leaf.argument}: {leaf.fixed} is not among the weights as {leaf.dtype} {leaf.shape}")

    def _calls_are_of_one_model(self) -> None:
        """All calls have the same parameters, and no two are the same call."""
        known: dict[Hashable, int] = {}
        for number, one in enumerate(self.sets):
            call, first = one.call, self.call
            for name in ("parameters", "defaults", "latent", "timestep"):
                if getattr(call, name) != getattr(first, name):
                    raise ValueError(f"sets.{number}.call.{name}: differs from that of sets.0; an engine is of one model")
            if (same := known.setdefault(call_key(call, self.weights), number)) != number:
                raise ValueError(f"sets.{number}.call: is the call of sets.{same}; an engine answers a call with one set of programs")
