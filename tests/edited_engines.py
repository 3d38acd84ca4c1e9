"""Engines with another manifest, other weights or in one archive: what strangers and accidents make of them."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rfc_export.artifact import file_spec
from rfc_export.manifest import MANIFEST, WEIGHTS
from rfc_export.seal import sealed
from rfc_export.weights import weight_spec


def linked(source: Path, target: Path) -> Path:
    """A copy of an engine's folder whose files are those of the other: replace them, never write to them."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        os.link(path, target / path.name)
    return target


def put(path: Path, content: bytes) -> None:
    """Another content, where the file may be one of another folder as well."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def with_manifest(folder: Path, change: Callable[[dict[str, Any]], object], key: Path | None = None) -> Path:
    """Change the manifest; its checksum fits."""
    record = json.loads((folder / MANIFEST).read_text())
    change(record)
    put(folder / MANIFEST, json.dumps(sealed(record, key)).encode())
    return folder


def with_file(folder: Path, name: str, content: bytes) -> Path:
    """Replace a file; its checksum and length fit."""
    put(folder / name, content)
    return with_manifest(folder, lambda record: record["files"].update({name: file_spec(folder / name).model_dump()}))


def with_weights(folder: Path, changed: Mapping[str, Tensor], told: bool = True) -> Path:
    """Replace weights; the file's checksum fits, and with `told` also what the manifest says of each."""
    tensors = {**load_file(folder / WEIGHTS), **changed}
    (folder / WEIGHTS).unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    if told:
        specs = {name: weight_spec(tensor).model_dump() for name, tensor in changed.items()}
        with_manifest(folder, lambda record: record["weights"].update(specs))
    return with_file(folder, WEIGHTS, (folder / WEIGHTS).read_bytes())


def packed(folder: Path, path: Path, compression: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    """An archive of the folder with further files."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"rfc/{file.name}")
        for name, content in more.items():
            archive.writestr(f"rfc/{name}", content)
    return path
