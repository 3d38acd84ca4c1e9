"""Methods as JSON: an engine's estimator and schedule by name and fields, rebuilt from the package's own classes only."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

import rfc
from rfc.method import CachingMethod, placement
from rfc_export.errors import ArtifactError, ExportError

ESTIMATOR_KINDS = (rfc.Reuse, rfc.Taylor, rfc.Hermite, rfc.Newton, rfc.RFE, rfc.Projective, rfc.Aligned, rfc.Stored)
ESTIMATORS: dict[str, type[rfc.Estimator]] = {kind.__name__: kind for kind in ESTIMATOR_KINDS}
SCHEDULES: dict[str, type[rfc.Schedule]] = {kind.__name__: kind for kind in (rfc.Every, rfc.Listed, rfc.RCS, rfc.AnchorChange, rfc.StepChange, rfc.ProbeChange)}
KNOWN: dict[str, Any] = ESTIMATORS | SCHEDULES


def encode_method(method: CachingMethod) -> dict[str, Any]:
    """Return {"estimator": ..., "schedule": ...}; ExportError for parts that are not this package's: no engine could rebuild them."""
    where = placement(method)
    return {
        "estimator": _encode(method.estimator),
        "schedule": _encode(method.schedule),
        **({"granularity": where.granularity} if where.granularity is not None else {}),
        **({"probe": where.probe} if where.probe else {}),
    }


def decode_method(encoded: dict[str, Any]) -> rfc.Method:
    """The method again; ArtifactError for what no method is."""
    if not {"estimator", "schedule"} <= set(encoded) <= {"estimator", "schedule", "granularity", "probe"}:
        raise ArtifactError(f"method: expected estimator and schedule, got {', '.join(sorted(encoded)) or 'nothing'}")
    estimator = _decode("method.estimator", encoded["estimator"], ESTIMATORS)
    schedule = _decode("method.schedule", encoded["schedule"], SCHEDULES)
    try:
        return rfc.Method(estimator=estimator, schedule=schedule, granularity=encoded.get("granularity"), probe=encoded.get("probe", 0))
    except ValueError as error:
        raise ArtifactError(f"method: {error}") from error


def _encode(part: Any) -> dict[str, Any]:
    name = type(part).__name__
    if KNOWN.get(name) is not type(part):
        known = ", ".join(KNOWN)
        raise ExportError(f"export: {part!r} is of a class of its own; an engine can be rebuilt with {known}")
    return {"type": name, **{field.name: _encode_value(getattr(part, field.name)) for field in fields(part)}}


def _encode_value(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    if isinstance(value, tuple):
        return list(value)
    return _encode(value) if type(value).__name__ in KNOWN else value


def _decode(where: str, encoded: Any, known: dict[str, Any]) -> Any:
    got = encoded.get("type") if isinstance(encoded, dict) else encoded
    if not isinstance(encoded, dict) or not isinstance(got, str) or got not in known:
        raise ArtifactError(f"{where}: type must be one of {', '.join(known)}, got {got!r}")
    kind = known[encoded["type"]]
    given = {name: value for name, value in encoded.items() if name != "type"}
    wanted = {field.name for field in fields(kind)}
    if set(given) != wanted:
        raise ArtifactError(f"{where}: {encoded['type']} has the fields {', '.join(sorted(wanted))}, got {', '.join(sorted(given))}")
    for field in fields(kind):
        if field.type == "bool" and not isinstance(given[field.name], bool):
            raise ArtifactError(f"{where}.{field.name}: expected true or false, got {given[field.name]!r}")
    try:
        return kind(**{name: _decode_value(f"{where}.{name}", name, value) for name, value in given.items()})
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: {error}") from error


def _decode_value(where: str, name: str, value: Any) -> Any:
    if name == "estimator":
        return _decode(where, value, ESTIMATORS)
    if name in ("differences", "outputs") and isinstance(value, str):
        return dtype_of(where, value)
    return math.inf if value == "inf" else value


DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def dtype_of(where: str, name: str) -> torch.dtype:
    """The dtype of that name; ArtifactError for any other name."""
    if name not in DTYPES:
        raise ArtifactError(f"{where}: expected a dtype ({', '.join(DTYPES)}), got {name!r}")
    return DTYPES[name]


def name_of(dtype: torch.dtype) -> str:
    """The name a manifest has for a dtype; ExportError for one that no back end takes."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ExportError(f"export: tensors of {dtype} cannot be exported")
    return name
