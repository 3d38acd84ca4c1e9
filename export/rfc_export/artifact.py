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
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError

from rfc_export.errors import ArtifactError, ExportError
from rfc_export.manifest import MANIFEST, SCHEMA_VERSION, Manifest
from rfc_export.specs import FileSpec

MOST_MANIFEST_BYTES = 64 << 20

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
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "may not be written to" if parent.is_dir() else "is a file"
        raise ExportError(f"export: {path} cannot be written: {parent} {reason}; pass another path")


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `path` that becomes `path` when all went well; of a failure nothing stays.

    A path that ends in .pt2 becomes one file, a zip archive of the folder. ExportError where `path` exists and may not be overwritten,
    or where it cannot be written.
    """
    check_place(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise ExportError(f"export: {path} cannot be written: {error.strerror or error}; pass another path") from error
    try:
        yield staging
        _move(staging, path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ExportError(f"export: {path} could not be written, nothing was left there: {why}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(staging: Path, path: Path) -> None:
    staging.chmod(0o755)  # mkdtemp and safetensors keep others out
    for file in staging.iterdir():
        file.chmod(0o644)
    if path.suffix == ".pt2":
        packed = staging.with_name(staging.name + ".zip")
        try:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for file in sorted(staging.iterdir()):
                    archive.write(file, f"rfc/{file.name}")
            os.replace(packed, path)
        finally:
            packed.unlink(missing_ok=True)
        return
    old = path.with_name(f".{path.name}-old-{os.getpid()}")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(staging, path)
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
        record = json.loads(where.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: no JSON: {error}; copy the artefact again") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(record, dict) and "schema_version" in record and type(version) is not int:
        raise ArtifactError(f"{where}: schema_version: expected {SCHEMA_VERSION}, got {version!r}")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        how = "update rfc-fx" if version > SCHEMA_VERSION else "export the model again with this rfc-fx"
        raise ArtifactError(f"{where}: schema version {version}, this rfc-fx reads {SCHEMA_VERSION}; {how}")
    try:
        return Manifest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "manifest"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error" or first["loc"]:  # the whole manifest is no answer
            got = repr(first.get("input"))
            message += f", got {got if len(got) < 80 else got[:77] + '...'}"
        raise ArtifactError(f"{where}: {field}: {message}") from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """ArtifactError where a file is missing, of another length or of another content than the manifest says."""
    for name, spec in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            what = "a link, which no artefact has" if path.is_symlink() else "missing"
            raise ArtifactError(f"{path}: {what}; copy the artefact again")
        if (size := path.stat().st_size) != spec.bytes:
            raise ArtifactError(f"{path}: {size} bytes, expected {spec.bytes}: the file is cut off or another; copy the artefact again")
        if (checksum := sha256(path)) != spec.sha256:
            raise ArtifactError(
                f"{path}: SHA-256 {checksum[:12]}..., expected {spec.sha256[:12]}...: the file was changed; copy the artefact again"
            )
