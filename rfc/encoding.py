"""Methods as JSON: estimator and schedule by name and fields; nothing is imported to rebuild them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch

from rfc.estimators.adaptive import AdaptiveNewton
from rfc.estimators.aligned import Aligned
from rfc.estimators.base import Estimator
from rfc.estimators.linear_prediction import LinearPrediction
from rfc.estimators.newton import Newton
from rfc.estimators.predicted import Predicted
from rfc.estimators.predictor_corrector import PredictorCorrector
from rfc.estimators.relational import RFE, Projective
from rfc.estimators.ridge import RidgeChebyshev
from rfc.estimators.taylor import Hermite, Reuse, Taylor
from rfc.method import Method
from rfc.placement.chebyshev import ChebyshevPlaced
from rfc.placement.growing import GrowingWindow
from rfc.placement.log_snr import LogSNRPlaced
from rfc.placement.magcache import MagnitudePlaced
from rfc.placement.weighted import Weighted
from rfc.schedules.change import AnchorChange, ProbeChange, StepChange
from rfc.schedules.fixed import Every, Listed, Phased, Placed
from rfc.schedules.output_change import OutputChange
from rfc.schedules.rcs import RCS
from rfc.schedules.spectral_change import SpectralChange
from rfc.schedules.verified import Verified
from rfc.storage import Stored
from rfc.token_selection import Tokens


class EncodingError(ValueError):
    """A method that JSON cannot hold, or JSON that no method is."""


ESTIMATORS = (
    Reuse,
    Taylor,
    Hermite,
    Newton,
    AdaptiveNewton,
    LinearPrediction,
    RFE,
    Projective,
    Aligned,
    RidgeChebyshev,
    PredictorCorrector,
    Predicted,
    Stored,
)
SCHEDULES = (
    Every,
    Listed,
    Placed,
    Phased,
    RCS,
    AnchorChange,
    StepChange,
    ProbeChange,
    OutputChange,
    SpectralChange,
    Verified,
    ChebyshevPlaced,
    LogSNRPlaced,
    MagnitudePlaced,
    Weighted,
    GrowingWindow,
)
OWN = (*ESTIMATORS, *SCHEDULES, Tokens)
OPTIONAL = ("granularity", "default_granularity", "probe", "tokens", "name")
"""Fields of a method that are left out where they are at their defaults."""


def encode_method(method: Method) -> dict[str, Any]:
    """Return {"estimator": ..., "schedule": ...} with what else the method says; EncodingError for settings that JSON cannot hold.

    Parts of other classes than the package's are named by import path ("package.module:Class"); `decode_method` wants those classes.
    """
    encoded = {"estimator": _encode(method.estimator), "schedule": _encode(method.schedule)}
    for field in fields(method):
        if field.name in OPTIONAL and (value := getattr(method, field.name)) != field.default:
            encoded[field.name] = _encode_value("method." + field.name, value)
    return encoded


def decode_method(encoded: dict[str, Any], classes: Iterable[type] = ()) -> Method:
    """The method again; EncodingError for what no method is.

    Nothing is imported: only the package's classes are made, and those in `classes`.
    """
    if not {"estimator", "schedule"} <= set(encoded) <= {"estimator", "schedule", *OPTIONAL}:
        raise EncodingError(f"method: expected estimator and schedule, got {', '.join(sorted(encoded)) or 'nothing'}")
    foreign = tuple(classes)
    settings = {name: encoded[name] for name in OPTIONAL if name in encoded}
    if "tokens" in settings:
        settings["tokens"] = _decode("method.tokens", settings["tokens"], (Tokens,), ())
    estimator = _decode("method.estimator", encoded["estimator"], ESTIMATORS, foreign)
    schedule = _decode("method.schedule", encoded["schedule"], SCHEDULES, foreign)
    try:
        return Method(estimator=estimator, schedule=schedule, **settings)
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodingError(f"method: {error}") from error


def classes_of(method: Method) -> list[type]:
    """The classes of the method's parts that are not the package's own."""
    estimator = method.estimator
    parts = (estimator, method.schedule, *((estimator.estimator,) if isinstance(estimator, Stored) else ()))
    return [type(part) for part in parts if type(part) not in OWN]


def _path(kind: type) -> str:
    return kind.__name__ if kind in OWN else f"{kind.__module__}:{kind.__qualname__}"


def _encode(part: Any) -> dict[str, Any]:
    path = _path(type(part))
    if not is_dataclass(part):
        raise EncodingError(f"{path} is no dataclass, so its settings are not known; make it a @dataclass(frozen=True, kw_only=True)")
    return {
        "type": path,
        **{field.name: _encode_value(f"{path}.{field.name}", getattr(part, field.name)) for field in fields(part) if field.init},
    }


def _encode_value(where: str, value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise EncodingError(f"{where}: expected a number, got nan")
        return "inf" if value > 0 else "-inf"
    if isinstance(value, tuple | list):
        return [_encode_value(where, entry) for entry in value]
    if isinstance(value, Estimator | Tokens):
        return _encode(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise EncodingError(f"{where}: JSON holds numbers, texts and lists of them, got {value!r}")


def _decode(where: str, encoded: Any, own: tuple[type, ...], foreign: tuple[type, ...]) -> Any:
    path = encoded.get("type") if isinstance(encoded, dict) else encoded
    known = {_path(kind): kind for kind in (*own, *foreign)}
    if not isinstance(encoded, dict) or not isinstance(path, str) or path not in known:
        if isinstance(path, str) and ":" in path:
            raise EncodingError(f"{where}: {path} is a class outside of rfc; import it yourself and pass it as one of classes=[...]")
        raise EncodingError(f"{where}: type must be one of {', '.join(map(_path, own))}, got {path!r}")
    kind: Any = known[path]
    settings = {name: value for name, value in encoded.items() if name != "type"}
    expected = {field.name: field for field in fields(kind) if field.init}
    needed = {name for name, field in expected.items() if field.default is MISSING and field.default_factory is MISSING}
    if not needed <= set(settings) <= set(expected):
        raise EncodingError(f"{where}: {path} has the fields {', '.join(sorted(expected))}, got {', '.join(sorted(settings))}")
    for name, value in settings.items():
        if expected[name].type in ("bool", bool) and not isinstance(value, bool):
            raise EncodingError(f"{where}.{name}: expected true or false, got {value!r}")
    try:
        return kind(**{name: _decode_value(f"{where}.{name}", name, value, foreign) for name, value in settings.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodingError(f"{where}: {error}") from error


def _decode_value(where: str, name: str, value: Any, foreign: tuple[type, ...]) -> Any:
    if name == "estimator":
        return _decode(where, value, ESTIMATORS, foreign)
    if name in ("differences", "outputs") and isinstance(value, str):
        return dtype_of(where, value)
    if isinstance(value, list):
        return tuple(_decode_value(where, "", entry, foreign) for entry in value)
    if isinstance(value, int) and value.bit_length() > 63:
        raise EncodingError(f"{where}: expected a number of at most 63 bits, got one of {value.bit_length()}")
    return {"inf": math.inf, "-inf": -math.inf}[value] if value in ("inf", "-inf") else value


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
