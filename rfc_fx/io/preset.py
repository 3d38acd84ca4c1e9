"""A method in a small JSON file: what `rfc-fx calibrate` writes, and `transform` and `rfc-fx generate` take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rfc.encoding import EncodingError, decode_method, encode_method
from rfc.method import Method
from rfc_fx.errors import RFCError
from rfc_fx.io.atomic import write_atomically

SCHEMA_VERSION = 1


class PresetError(RFCError):
    """A file that is no preset, or a method that cannot be kept in one."""


def write_preset(path: str | Path, method: Method, measured: dict[str, Any]) -> None:
    """Write a method with what was measured of it, whole or not at all; PresetError for settings that JSON cannot hold."""
    path = Path(path)
    try:
        kept = {"schema_version": SCHEMA_VERSION, "method": encode_method(method), "measured": measured}
    except EncodingError as error:
        raise PresetError(f"{path}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text))


def read_preset(path: str | Path, classes: Iterable[type] = ()) -> Method:
    """The method of such a file, of the package's parts and of `classes`; PresetError says what is wrong with it."""
    try:
        kept = json.loads(Path(path).read_text())
    except OSError as error:
        raise PresetError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise PresetError(f"{path}: not a preset: {error}") from error
    version = kept.get("schema_version") if isinstance(kept, dict) else None
    if version != SCHEMA_VERSION or not isinstance(kept.get("method"), dict):
        raise PresetError(f"{path}: expected a preset of schema version {SCHEMA_VERSION} with a method, got version {version!r}")
    try:
        return decode_method(kept["method"], classes)
    except EncodingError as error:
        raise PresetError(f"{path}: {error}") from error
