"""The user's cache of built engines: its folder, and the key of an engine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rfc_export.errors import ExportError
from rfc_export.portable import Portable
from rfc_fx.io.atomic import write_atomically


def cache_folder() -> Path:
    """Where engines and timings are kept between exports: RFC_FX_CACHE, or the user's cache folder."""
    override = os.environ.get("RFC_FX_CACHE")
    root = Path(override) if override else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfc-fx"
    folder = root / "tensorrt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"tensorrt: {folder} cannot be made: {error.strerror or error}; set RFC_FX_CACHE to another folder") from error
    return folder


def cache_key(program: Portable, code: str, stored: str, built_by: Mapping[str, str], gpu: Sequence[str]) -> str:
    """What an engine depends on, as 64 hexadecimal digits: graph, shapes and types, weights, versions, GPU."""
    specs = [[spec.model_dump() for spec in specs] for specs in (program.inputs, program.outputs)]
    return key_of([code, specs, sorted(program.weights.items()), stored, dict(built_by), torch.__version__, list(gpu)])


def key_of(facts: Any) -> str:
    """SHA-256 of facts that JSON has words for."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def store(path: Path, engine: bytes) -> None:
    """Write the file whole or not at all: another export may read it."""
    write_atomically(path, lambda unfinished: unfinished.write_bytes(engine))
