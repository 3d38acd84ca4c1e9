"""Artefact: a folder with rfc.json, weights in safetensors and the programs of a back end, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rfc_export.errors import ExportError
from rfc_export.manifest import MANIFEST, Manifest
from rfc_export.seal import sealed
from rfc_export.specs import FileSpec
from rfc_fx.io.atomic import remove, replace_folder, sync, temporary_beside, write_atomically
from rfc_fx.tools.load import path_problem


def check_place(path: Path, *, overwrite: bool = False, mark: str = MANIFEST) -> None:
    """ExportError where `path` exists and may not be overwritten, or is no artefact: a folder with the file `mark`."""
    if (problem := path_problem(path)) is not None:
        raise ExportError(f"export: {str(path)[:80]}: cannot be written: {problem}; pass another path")
    if path.exists() and not overwrite:
        raise ExportError(f"export: {path} exists; pass another path, or overwrite=True (--overwrite)")
    if path.is_dir() and not (path / mark).exists() and any(path.iterdir()):
        raise ExportError(f"export: {path} is a folder without {mark}, not an artefact; it is not overwritten")
    if path.exists() and (path.suffix == ".pt2") == path.is_dir():
        kind = "folder" if path.is_dir() else "file"
        raise ExportError(f"export: {path} is a {kind}; a path that ends in .pt2 becomes a file, any other a folder; pass another path")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "may not be written to" if parent.is_dir() else "is a file"
        raise ExportError(f"export: {path} cannot be written: {parent} {reason}; pass another path")


@contextmanager
def writing(path: Path, *, overwrite: bool = False, mark: str = MANIFEST) -> Iterator[Path]:
    """A folder beside `path` that becomes `path` when all went well; of a failure nothing stays.

    A path that ends in .pt2 becomes one file, a zip archive of the folder. ExportError where `path` exists and may not be overwritten,
    or where it cannot be written.
    """
    check_place(path, overwrite=overwrite, mark=mark)
    path = path.resolve() if path.is_symlink() else path  # what a link points to is replaced, not the link
    leftovers = [staging := temporary_beside(path)]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging.mkdir(mode=0o700)
        except OSError as error:
            raise ExportError(f"export: {path} cannot be written: {error.strerror or error}; pass another path") from error
        try:
            yield staging
            leftovers += _move(staging, path)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise ExportError(f"export: {path} could not be written, nothing was left there: {why}") from error
    finally:
        for folder in leftovers:
            remove(folder)


def _move(staging: Path, path: Path) -> list[Path]:
    """Put the folder, or an archive of it, at `path`, on the disk; the folders that are left to be removed."""
    staging.chmod(0o755)
    for file in staging.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors keeps others out
        sync(file)
    if path.suffix == ".pt2":
        write_atomically(path, lambda packed: _pack(staging, packed))
        return []
    sync(staging)
    old = replace_folder(staging, path)
    sync(path.parent)
    return [] if old is None else [old]


def _pack(folder: Path, packed: Path) -> None:
    """One archive of the folder, rfc.json first, nothing compressed."""
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.iterdir(), key=lambda file: (file.name != MANIFEST, file.name)):
            archive.write(file, f"rfc/{file.name}")


def file_spec(path: Path) -> FileSpec:
    """Checksum and length of a file."""
    return FileSpec(sha256=sha256(path), bytes=path.stat().st_size)


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest, key: Path | None = None) -> None:
    """Write rfc.json with its checksum, signed with a private key where there is one."""
    text = json.dumps(sealed(manifest.model_dump(mode="json"), key), indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n")
