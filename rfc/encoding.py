"""Methods as JSON: estimator and schedule by name and fields, rebuilt from the package's own classes only."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

from rfc.estimators.aligned import Aligned
from rfc.estimators.base import Estimator
from rfc.estimators.newton import Newton
from rfc.estimators.predicted import Predicted
from rfc.estimators.relational import RFE, Projective
from rfc.estimators.taylor import Hermite, Reuse, Taylor
from rfc.granularity import parse_granularity
from rfc.method import CachingMethod, Method, placement
from rfc.schedules.base import Schedule
from rfc.schedules.change import AnchorChange, ProbeChange, StepChange
from rfc.schedules.fixed import Every, Listed, Phased, Placed
from rfc.schedules.rcs import RCS
from rfc.schedules.verified import Verified
from rfc.storage import Stored
from rfc.token_selection import Tokens


class EncodingError(ValueError):
    """A method that JSON cannot hold, or JSON that no method is."""


ESTIMATOR_KINDS = (Reuse, Taylor, Hermite, Newton, RFE, Projective, Aligned, Predicted, Stored)
ESTIMATORS: dict[str, type[Estimator]] = {kind.__name__: kind for kind in ESTIMATOR_KINDS}
SCHEDULE_KINDS = (Every, Listed, Placed, Phased, RCS, AnchorChange, StepChange, ProbeChange, Verified)
SCHEDULES: dict[str, type[Schedule]] = {kind.__name__: kind for kind in SCHEDULE_KINDS}
TOKENS: dict[str, type[Tokens]] = {"Tokens": Tokens}
KNOWN: dict[str, Any] = ESTIMATORS | SCHEDULES | TOKENS
PLACEMENT = ("granularity", "probe", "tokens")
"""Where a method applies, in the manifest only where it says so."""


def encode_method(method: CachingMethod) -> dict[str, Any]:
    """Return {"estimator": ..., "schedule": ...}; EncodingError for parts that are not this package's: nobody could rebuild them."""
    where = placement(method)
    return {
        "estimator": _encode(method.estimator),
        "schedule": _encode(method.schedule),
        **({"granularity": where.granularity} if where.granularity is not None else {}),
        **({"probe": where.probe} if where.probe else {}),
        **({"tokens": _encode(where.tokens)} if where.tokens is not None else {}),
    }


def decode_method(encoded: dict[str, Any]) -> Method:
    """The method again; EncodingError for what no method is."""
    if not {"estimator", "schedule"} <= set(encoded) <= {"estimator", "schedule", *PLACEMENT}:
        raise EncodingError(f"method: expected estimator and schedule, got {', '.join(sorted(encoded)) or 'nothing'}")
    estimator = _decode("method.estimator", encoded["estimator"], ESTIMATORS)
    schedule = _decode("method.schedule", encoded["schedule"], SCHEDULES)
    where = {name: encoded[name] for name in PLACEMENT if name in encoded}
    if "tokens" in where:
        where["tokens"] = _decode("method.tokens", where["tokens"], TOKENS)
    try:
        if "granularity" in where:
            parse_granularity(where["granularity"])
        return Method(estimator=estimator, schedule=schedule, **where)
    except ValueError as error:
        raise EncodingError(f"method: {error}") from error


def _encode(part: Any) -> dict[str, Any]:
    name = type(part).__name__
    if KNOWN.get(name) is not type(part):
        known = ", ".join(KNOWN)
        raise EncodingError(f"{part!r} is of a class of its own; what can be rebuilt is {known}")
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
        raise EncodingError(f"{where}: type must be one of {', '.join(known)}, got {got!r}")
    kind = known[encoded["type"]]
    given = {name: value for name, value in encoded.items() if name != "type"}
    wanted = {field.name for field in fields(kind)}
    if set(given) != wanted:
        raise EncodingError(f"{where}: {encoded['type']} has the fields {', '.join(sorted(wanted))}, got {', '.join(sorted(given))}")
    for field in fields(kind):
        if field.type == "bool" and not isinstance(given[field.name], bool):
            raise EncodingError(f"{where}.{field.name}: expected true or false, got {given[field.name]!r}")
    try:
        return kind(**{name: _decode_value(f"{where}.{name}", name, value) for name, value in given.items()})
    except (TypeError, ValueError) as error:
        raise EncodingError(f"{where}: {error}") from error


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
    """The dtype of that name; EncodingError for any other name."""
    if name not in DTYPES:
        raise EncodingError(f"{where}: expected a dtype ({', '.join(DTYPES)}), got {name!r}")
    return DTYPES[name]
