"""Methods and data types as a manifest has them (`rfc.encoding`), with this package's errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import rfc
from rfc import encoding
from rfc.encoding import DTYPES as DTYPES
from rfc.method import Method
from rfc.phase import ESTIMATE, FULL
from rfc_export.errors import ArtifactError, ExportError


def check_method(method: Method, dispatch: str = "host") -> None:
    """ExportError, which names the method, for one that no engine of this dispatch can run; nothing has been loaded for it."""
    encode_method(method)
    name, phases = method.name, method.schedule.branches
    if dispatch == "cond" and phases != (FULL.name, ESTIMATE.name):
        raise ExportError(
            f"export: {name} has the phases {', '.join(phases)}, an engine with dispatch='cond' has FULL and ESTIMATE; "
            "pass dispatch='host' (--dispatch host)"
        )


def encode_method(method: Method) -> dict[str, Any]:
    """Return {"estimator": ..., "schedule": ...}; ExportError for settings that JSON cannot hold: no engine could rebuild them."""
    try:
        return encoding.encode_method(method)
    except encoding.EncodingError as error:
        raise ExportError(f"export: {error}") from error


def decode_method(encoded: dict[str, Any], classes: Iterable[type] = ()) -> rfc.Method:
    """The method again, of the package's parts and of `classes`; ArtifactError for what no method is."""
    try:
        return encoding.decode_method(encoded, classes)
    except encoding.EncodingError as error:
        raise ArtifactError(str(error)) from error


def dtype_of(where: str, name: str) -> torch.dtype:
    """The dtype of that name; ArtifactError for any other name."""
    try:
        return encoding.dtype_of(where, name)
    except encoding.EncodingError as error:
        raise ArtifactError(str(error)) from error


def name_of(dtype: torch.dtype) -> str:
    """The name a manifest has for a dtype; ExportError for one that no back end takes."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ExportError(f"export: tensors of {dtype} cannot be exported")
    return name
