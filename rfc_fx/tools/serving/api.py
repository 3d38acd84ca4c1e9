"""The API: bodies of `POST /v1/images/generations` in OpenAI's form, and its answers."""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rfc_fx.tools.requests.request import Limits, Request, RequestError, parse_request

BODY = 65_536
"""Most bytes of a body."""
CALL = 8
"""Most pictures of a call."""
OURS = ("seed", "steps", "guidance", "negative_prompt", "class")
"""Fields that OpenAI's form does not have."""
IGNORED = ("model", "user", "quality", "style", "background", "output_format", "moderation")


@dataclass(frozen=True)
class Call:
    """What one call asks for."""

    requests: tuple[Request, ...]
    """One for each picture, seeds in a row."""
    streams: bool = False
    """Whether progress comes as server-sent events."""


def parse_call(body: bytes, limits: Limits = Limits(), most: int = CALL) -> Call:
    """The pictures that a body asks for: prompt, n (at most `most`), size, and `OURS`; RequestError for anything else."""
    if len(body) > BODY:
        raise RequestError(f"body: must have at most {BODY} bytes, got {len(body)}")
    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"body: no JSON: {str(error)[:100]}") from error
    if not isinstance(record, Mapping):
        raise RequestError('body: expected an object such as {"prompt": "an apple", "n": 1, "size": "512x512"}')
    values = {str(name): value for name, value in record.items() if value is not None and name not in IGNORED}
    count = values.pop("n", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise RequestError(f"body: n must be an integer from 1 to {most}, got {count!r:.40}")
    if (form := values.pop("response_format", "b64_json")) != "b64_json":
        raise RequestError(f"body: response_format must be b64_json, got {form!r:.40}")
    streams = values.pop("stream", False)
    if not isinstance(streams, bool):
        raise RequestError(f"body: stream must be true or false, got {streams!r:.40}")
    sides = _sides(values.pop("size", "auto"))
    seed = values.pop("seed", None)
    first = parse_request({**values, **sides, "seed": secrets.randbits(31) if seed is None else seed}, "body", limits)
    return Call(tuple(replace(first, seed=(first.seed + index) % 2**63) for index in range(count)), streams)


def _sides(size: Any) -> dict[str, int]:
    if size == "auto":
        return {}
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size) if isinstance(size, str) else None
    if found is None:
        raise RequestError(f"body: size must be such as 512x512 or auto, got {size!r:.40}")
    return {"width": int(found[1]), "height": int(found[2])}


def answer(requests: Sequence[Request], pictures: Sequence[Any]) -> dict[str, Any]:
    """The answer with every picture (`rfc_fx.tools.requests.worker.Picture`) as base64, its seed, its full steps and its steps."""
    data = [
        {"b64_json": base64.b64encode(picture.png).decode(), "seed": request.seed, "nfc": picture.nfc, "steps": picture.steps}
        for request, picture in zip(requests, pictures, strict=True)
    ]
    return {"created": int(time.time()), "data": data}


def error_body(message: str, kind: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
