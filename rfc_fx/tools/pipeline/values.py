"""Values of `--call name=value`: numbers, texts, lists, pictures and tensors, as the parameter takes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.pipeline.picture_files import FRAMES, read_frames, read_picture
from rfc_fx.tools.pipeline.tensor_files import TENSORS, read_tensor

_PLAIN = (bool, int, float, str, list, tuple, dict, NoneType)
_WORDS = {"none": None, "null": None, "true": True, "false": False}
_PICTURES = re.compile(r"(^|_)(images?|masks?|videos?)$")
"""Parameters without an annotation that take pictures by their names."""


def takes_pictures(name: str, annotation: Any) -> bool:
    """Whether a parameter takes pictures: by its annotation, else by its name."""
    return "Image" in str(annotation) or (_PICTURES.search(name) is not None and not _plain_types(annotation) - {NoneType})


def parse_value(option: str, name: str, text: str, annotation: Any) -> Any:
    """The value of a parameter from its text; OptionError names `option` where the parameter cannot have it."""
    suffix = Path(text).suffix.lower()
    if suffix in TENSORS and "Tensor" in str(annotation):
        return read_tensor(option, name, Path(text))
    pictures = takes_pictures(name, annotation)
    if pictures and text.lower() not in _WORDS:
        return _pictures(option, name, text)
    value = _plain_value(option, text)
    types = _plain_types(annotation)
    if str in types and not isinstance(value, str | list | NoneType):
        return text if types.isdisjoint({int, float, bool, dict}) else value
    _check_type(option, text, value, annotation, types)
    return value


def _pictures(option: str, name: str, text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return [_pictures(option, name, part.strip().strip("\"'")) for part in text[1:-1].split(",") if part.strip()]
    path = Path(text).expanduser()
    if path.suffix.lower() in FRAMES:
        return read_frames(option, path)
    return read_picture(option, path, is_mask="mask" in name)


def _plain_value(option: str, text: str) -> Any:
    """JSON where it is some, a list without quotes, a word of Python's or JSON's, else the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text, parse_constant=_refuse)
    except _NotFiniteError:
        raise OptionError(f"{option}: numbers must be finite, got {text}") from None
    except (ValueError, RecursionError):  # no JSON, or an integer of thousands of digits
        pass
    if text.lower() in ("nan", "inf", "-inf", "+inf", "-infinity", "+infinity", "infinity"):
        raise OptionError(f"{option}: numbers must be finite, got {text}")
    if text.startswith("[") and text.endswith("]"):
        return [_plain_value(option, part.strip()) for part in text[1:-1].split(",") if part.strip()]
    return text


class _NotFiniteError(ValueError):
    pass


def _refuse(constant: str) -> float:
    raise _NotFiniteError(constant)


def _check_type(option: str, text: str, value: Any, annotation: Any, types: set[Any]) -> None:
    """OptionError for a value that no plain type of the annotation fits; what is not plain is left to the pipeline."""
    if not types - {NoneType} or value is None:
        return
    kinds = types | ({int} if float in types else set()) | ({list} if tuple in types else set())
    fits = type(value) in kinds
    if not fits and not (isinstance(value, str) and _other_types(annotation)):
        expected = " or ".join(sorted(kind.__name__ for kind in types - {NoneType}))
        raise OptionError(f"{option}: expected {expected}, got {text}")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        raise OptionError(f"{option}: expected an integer below 2^63, got {text}")


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _plain_types(annotation: Any) -> set[Any]:
    """The numbers, texts and containers among what an annotation names."""
    kinds = {get_origin(member) or member for member in _members(annotation)}
    return {kind for kind in _PLAIN if kind in kinds}


def _other_types(annotation: Any) -> bool:
    """Whether an annotation names something that no text on a command line is."""
    return any((get_origin(member) or member) not in _PLAIN for member in _members(annotation))
