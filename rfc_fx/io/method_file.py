"""Method files: a method with what was measured of it, in JSON; `rfc-fx calibrate` writes them, `transform` and commands read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rfc.encoding import EncodingError, decode_method, encode_method
from rfc.files import FileError, parse_json, read_json
from rfc.method import Method
from rfc_fx.errors import RFCError
from rfc_fx.io.atomic import write_atomically

SCHEMA_VERSION = 1

MOST_BYTES = 16 << 20
"""Of a method file."""


class MethodFileError(RFCError):
    """A file that holds no method, or a method that no file can hold."""


def write_method(path: str | Path, method: Method, measured: dict[str, Any]) -> None:
    """Write a method with what was measured of it, whole or not at all; MethodFileError for settings that JSON cannot hold."""
    path = Path(path)
    try:
        record = {"schema_version": SCHEMA_VERSION, "method": encode_method(method), "measured": measured}
    except EncodingError as error:
        raise MethodFileError(f"{path}: {error}") from error
    try:
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        parse_json(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise MethodFileError(f"{path}: what was measured cannot be read again: {error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: part.write_text(text))
    except OSError as error:
        raise MethodFileError(f"{path}: cannot be written, what was there is as it was: {error.strerror or error}") from error


def read_method(path: str | Path, classes: Iterable[type] = ()) -> Method:
    """The method of such a file, of the package's parts and of `classes`; MethodFileError says what is wrong with it."""
    try:
        record = read_json(Path(path), most=MOST_BYTES)
    except FileError as error:
        raise MethodFileError(f"{path}: {error}; calibrate again, or copy the file again") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION or not isinstance(record.get("method"), dict):
        expected = f"expected a method file of schema version {SCHEMA_VERSION}, as rfc-fx calibrate writes it"
        raise MethodFileError(f"{path}: {expected}, got version {version!r}")
    try:
        return decode_method(record["method"], classes)
    except EncodingError as error:
        raise MethodFileError(f"{path}: {error}") from error


def method_of(method: Any) -> Any:
    """The method, read where it is the path of a method file (.json); what is neither is returned, to be refused where it is used."""
    if isinstance(method, str | Path) and Path(method).suffix == ".json":
        return read_method(method)
    return method
