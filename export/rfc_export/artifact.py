"""Artefact: a folder with rfc.json, weights in safetensors and the programs of a back end, written whole or not at all.

Everything in rfc.json is checked before anything else is opened; files are named, never paths, and carry their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError

from rfc.grain import parse_granularity
from rfc_export.errors import ArtifactError, ExportError
from rfc_export.methods import DTYPES

SCHEMA_VERSION = 1
"""Rises whenever an older reader would misread a newer manifest."""

MANIFEST = "rfc.json"
WEIGHTS = "weights.safetensors"

MOST_MANIFEST_BYTES = 64 << 20
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


def _known_granularity(text: str) -> str:
    parse_granularity(text)
    return text


DType = Annotated[str, AfterValidator(_known_dtype)]
BackendName = Literal["aoti", "onnx", "tensorrt"]
DispatchName = Literal["host", "cond"]


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
    granularity: Annotated[str, AfterValidator(_known_granularity)]
    backend: BackendName
    dispatch: DispatchName
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
        wanted = {"FULL", "ESTIMATE"} if self.dispatch == "host" else {"STEP"}
        if missing := wanted - set(self.programs):
            raise ValueError(f"programs: {', '.join(sorted(missing))} missing")
        if self.decision.program is not None and self.decision.program not in self.programs:
            raise ValueError(f"decision.program: there is no program {self.decision.program}")
        if (own := self.method.get("granularity", self.granularity)) != self.granularity:
            raise ValueError(f"granularity: the method works on {own!r}, the programs on {self.granularity!r}")
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


# ---- writing ---------------------------------------------------------------------------------------------------------


def check_place(path: Path, *, overwrite: bool = False) -> None:
    """ExportError where `path` exists and may not be overwritten, or is no artefact."""
    if path.exists() and not overwrite:
        raise ExportError(f"export: {path} exists; pass another path, or overwrite=True (--overwrite)")
    if path.is_dir() and not (path / MANIFEST).exists() and any(path.iterdir()):
        raise ExportError(f"export: {path} is a folder without {MANIFEST}, not an artefact; it is not overwritten")
    if path.exists() and (path.suffix == ".pt2") == path.is_dir():
        kind = "folder" if path.is_dir() else "file"
        raise ExportError(f"export: {path} is a {kind}; a path that ends in .pt2 becomes a file, any other a folder; pass another path")


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `path` that becomes `path` when all went well; of a failure nothing stays.

    A path that ends in .pt2 becomes one file, a zip archive of the folder. ExportError where `path` exists and may not be overwritten,
    or where it cannot be written.
    """
    check_place(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise ExportError(f"export: {path} cannot be written: {error.strerror or error}; pass another path") from error
    try:
        yield made
        _move(made, path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ExportError(f"export: {path} could not be written, nothing was left there: {why}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _move(made: Path, path: Path) -> None:
    made.chmod(0o755)  # mkdtemp and safetensors keep others out
    for file in made.iterdir():
        file.chmod(0o644)
    if path.suffix == ".pt2":
        one = made.with_name(made.name + ".zip")
        try:
            with zipfile.ZipFile(one, "w", zipfile.ZIP_STORED) as archive:
                for file in sorted(made.iterdir()):
                    archive.write(file, f"rfc/{file.name}")
            os.replace(one, path)
        finally:
            one.unlink(missing_ok=True)
        return
    old = path.with_name(f".{path.name}-old-{os.getpid()}")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(made, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def file_spec(path: Path) -> FileSpec:
    """Checksum and length of a file."""
    return FileSpec(sha256=sha256(path), bytes=path.stat().st_size)


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write rfc.json."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n")


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The artefact's folder; a .pt2 file is unpacked for the time of the block, its file names checked first."""
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise ArtifactError(f"{path}: no such artefact; pass a folder with {MANIFEST}, or a .pt2 file")
    with tempfile.TemporaryDirectory(prefix="rfc-engine-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    name = info.filename.removeprefix("rfc/")
                    if not info.filename.startswith("rfc/") or not name or name != Path(name).name or name.startswith("."):
                        raise ArtifactError(f"{path}: holds {info.filename!r}, which no artefact has; it is not opened")
                    with archive.open(info) as source, (Path(folder) / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ArtifactError(f"{path}: no artefact, or a damaged one: {error}; copy it again") from error
        yield Path(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and check rfc.json; ArtifactError with the field that is wrong."""
    where = folder / MANIFEST
    if where.is_symlink() or not where.is_file():
        what = "a link" if where.is_symlink() else "missing"
        raise ArtifactError(f"{where}: {MANIFEST} is {what}; this is no artefact of rfc-fx export")
    if where.stat().st_size > MOST_MANIFEST_BYTES:
        raise ArtifactError(f"{where}: {where.stat().st_size} bytes, more than any manifest has")
    try:
        given = json.loads(where.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: no JSON: {error}; copy the artefact again") from error
    version = given.get("schema_version") if isinstance(given, dict) else None
    if isinstance(given, dict) and "schema_version" in given and type(version) is not int:
        raise ArtifactError(f"{where}: schema_version: expected {SCHEMA_VERSION}, got {version!r}")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        how = "update rfc-fx" if version > SCHEMA_VERSION else "export the model again with this rfc-fx"
        raise ArtifactError(f"{where}: schema version {version}, this rfc-fx reads {SCHEMA_VERSION}; {how}")
    try:
        return Manifest.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "manifest"
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error" or first["loc"]:  # the whole manifest is no answer
            got = repr(first.get("input"))
            said += f", got {got if len(got) < 80 else got[:77] + '...'}"
        raise ArtifactError(f"{where}: {field}: {said}") from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """ArtifactError where a file is missing, of another length or of another content than the manifest says."""
    for name, spec in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            what = "a link, which no artefact has" if path.is_symlink() else "missing"
            raise ArtifactError(f"{path}: {what}; copy the artefact again")
        if (size := path.stat().st_size) != spec.bytes:
            raise ArtifactError(f"{path}: {size} bytes, expected {spec.bytes}: the file is cut off or another; copy the artefact again")
        if (found := sha256(path)) != spec.sha256:
            raise ArtifactError(
                f"{path}: SHA-256 {found[:12]}..., expected {spec.sha256[:12]}...: the file was changed; copy the artefact again"
            )
