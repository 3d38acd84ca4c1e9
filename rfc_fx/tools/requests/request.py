"""Request: one picture that somebody asks for, checked before anything is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rfc_fx.errors import RFCError


class RequestError(RFCError):
    """A request that cannot be drawn: which field, what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a request may ask for; what is more is refused before it takes a place."""

    prompt: int = 4_000
    """Characters of a prompt, and of a negative one."""
    steps: int = 200
    side: int = 4_096
    """Pixels of width or height."""
    pixels: int = 4_194_304
    """Of a picture."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture: its text or class, its noise by seed, and how it is drawn; None is the pipeline's own."""

    seed: int = 0
    prompt: str | None = None
    label: int | None = None
    negative_prompt: str | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    guidance: float | None = None

    @property
    def fit(self) -> Hashable:
        """Equal for requests that one batch can hold: everything but text, class and seed."""
        is_negative = self.negative_prompt is not None
        return (self.prompt is None, self.label is None, is_negative, self.steps, self.width, self.height, self.guidance)

    def digest(self, *also: str) -> str:
        """Eight characters that say which picture this is, together with what else decides it (the model, the method)."""
        text = json.dumps([asdict(self), *also], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


INTEGERS = {"seed": (0, 2**63 - 1), "steps": (1, None), "width": (1, None), "height": (1, None), "class": (0, 2**31 - 1)}
TEXTS = ("prompt", "negative_prompt")
FIELDS = (*TEXTS, *INTEGERS, "guidance")


def parse_request(record: Any, where: str, limits: Limits = Limits()) -> Request:
    """The request that a JSON object describes; RequestError for anything else. `where`: for the message, such as "line 3".

    Fields: prompt or class, seed, negative_prompt, steps, width, height (pixels), guidance.
    """
    if not isinstance(record, Mapping):
        raise RequestError(f'{where}: expected an object such as {{"prompt": "an apple"}}, got {_shown(record)}')
    if unknown := sorted(str(name) for name in record if name not in FIELDS):
        raise RequestError(f"{where}: {unknown[0][:40]!r} is no field of a request; known are {', '.join(FIELDS)}")
    values = {name: value for name, value in record.items() if value is not None}
    for name in TEXTS:
        if name in values and not isinstance(values[name], str):
            raise RequestError(f"{where}: {name} must be a text, got {_shown(values[name])}")
        if len(values.get(name, "")) > limits.prompt:
            raise RequestError(f"{where}: {name} must have at most {limits.prompt} characters, got {len(values[name])}")
    most = {"steps": limits.steps, "width": limits.side, "height": limits.side}
    for name, (low, high) in INTEGERS.items():
        if name in values:
            _check_integer(where, name, values[name], low, most.get(name, high))
    guidance = values.get("guidance")
    if guidance is not None and (isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance <= 1_000):
        raise RequestError(f"{where}: guidance must be a number from 0 to 1000, got {_shown(guidance)}")
    if ("prompt" in values) == ("class" in values):
        raise RequestError(f"{where}: needs either a prompt or a class, got {'both' if 'prompt' in values else 'neither'}")
    if (pixels := values.get("width", 1) * values.get("height", 1)) > limits.pixels:
        raise RequestError(f"{where}: width x height must be at most {limits.pixels} pixels, got {pixels}")
    named = {"label" if name == "class" else name: value for name, value in values.items()}
    return Request(**named | ({} if guidance is None else {"guidance": float(guidance)}))


def _check_integer(where: str, name: str, value: Any, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise RequestError(f"{where}: {name} must be an integer {bounds}, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
