"""Engines to which calls are added: what lies in the folder is checked, kept, and stays as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rfc_export.backends import Backend
from rfc_export.engine_files import opened
from rfc_export.errors import ExportError
from rfc_export.manifest import WEIGHTS, Manifest
from rfc_export.reading import read_manifest
from rfc_export.seal import public_key
from rfc_export.target import check_target
from rfc_export.weights import weights_of

ABSENT = "(absent)"
"""What a setting is that one of two configurations does not have."""


@dataclass(frozen=True)
class Existing:
    """An engine as it was read, every file of it checked."""

    path: Path
    manifest: Manifest
    contents: dict[str, Tensor]
    """Bytes (uint8, one axis) of every file by name."""

    def check(self, facts: Mapping[str, Any]) -> None:
        """ExportError where the engine was made of another model, method, configuration or machine than the calls that are added."""
        manifest = self.manifest
        own = {
            **{name: getattr(manifest, name) for name in ("method", "backend", "config", "built_with", "target")},
            "model_class": manifest.model.model_class,
            "model_config": manifest.model.config,
            "dtype": manifest.model.dtype,
        }
        for name, value in facts.items():
            if difference := _difference(name, _as_stored(own[name]), _as_stored(value)):
                raise ExportError(f"export: {self.path}: its {difference}; add calls of the same, or export all calls together")

    def write(self, folder: Path, new: Mapping[str, Tensor], maker: Backend) -> None:
        """Write the files to another folder, with further weights."""
        for name, content in self.contents.items():
            if name != WEIGHTS or not new:
                (folder / name).write_bytes(content.numpy().data)
        if new:
            old = weights_of(str(self.path / WEIGHTS), self.contents[WEIGHTS], self.manifest.weights)
            save_file({**old, **new}, folder / WEIGHTS)
            maker.relocate(folder, [program for one in self.manifest.sets for program in one.programs.values()])


def check_there(path: Path) -> None:
    """ExportError where there is no folder to which calls could be added."""
    if path.is_file():
        raise ExportError(
            f"export: {path}: is one file, and calls are added to a folder; export to a path without .pt2, all calls or the first"
        )
    if not path.is_dir():
        raise ExportError(f"export: {path}: calls are added to an engine's folder, and there is none; export without add (--add)")


def existing_engine(path: Path, device: torch.device, key: Path | None) -> Existing:
    """The engine at `path`; ExportError where there is none that calls can be added to, or its signature would be lost.

    With a private key the engine has to be signed by it: whoever signs answers for what lies there already.
    """
    check_there(path)
    with opened(path) as files:
        manifest = read_manifest(files, None if key is None else [public_key(key)])
        if key is None and manifest.signature is not None:
            raise ExportError(f"export: {path} is signed, and would no longer be; pass sign= (--sign) with the key that signed it")
        check_target(str(path), manifest, device)
        return Existing(path, manifest, {name: files.read(name, spec) for name, spec in manifest.files.items()})


def _as_stored(value: Any) -> Any:
    """As the manifest's file has it: lists for tuples; of a model's configuration the settings, without diffusers' own notes."""
    return {key: json.loads(json.dumps(one)) for key, one in value.items() if key[0] != "_"} if isinstance(value, dict) else value


def _difference(name: str, own: Any, other: Any) -> str | None:
    """In words, where two values differ, and of two mappings in which setting; None where they are equal."""
    if own == other:
        return None
    if isinstance(own, dict) and isinstance(other, dict):
        key = next(key for key in (*own, *other) if own.get(key, ABSENT) != other.get(key, ABSENT))
        return _difference(f"{name}.{key}", own.get(key, ABSENT), other.get(key, ABSENT))
    return f"{name} is {_cut(own)}, that of the added calls {_cut(other)}"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
