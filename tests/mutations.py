"""Mutations of files, seeded: of JSON by its values, of bytes by their places."""

import copy
import json
import pickle
import random
from collections.abc import Callable
from typing import Any

Mutate = Callable[[random.Random], bytes]

LEAVES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *(0.0, -0.5, 0.5, 1.5, 1e-300, 1e38, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", "x", "inf", "nan", "None", "../x", "/etc/passwd", "/dev/zero", "full.onnx", "x" * 10_000, "\ud800", "a\0b", "ünï", "[" * 90),
    *("RFE", "RCS", "Taylor", "Every", "Tokens", "os:system", "module", "cond", "aoti", "float16", "int64", "FULL", "PARTIAL_9"),
    *([], {}, [[]], [1], [2**40] * 3, ["x"], {"type": "Every"}, {"x": 1}, [0] * 5000),
)


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def changed_value(record: Any, generator: random.Random) -> Any:
    """A copy with one value, somewhere, replaced, removed, doubled or exchanged with another."""
    record = pickle.loads(pickle.dumps(record))  # faster than deepcopy
    place, key = _somewhere(record, generator)
    if place is None:
        return generator.choice(LEAVES)
    kind = generator.randrange(10)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, list):
        place.insert(key, copy.deepcopy(place[key]))
    elif kind == 1:
        place[f"{key}x"] = place[key]
    elif kind == 2:
        other, other_key = _somewhere(record, generator)
        if other is not None:
            place[key] = copy.deepcopy(other[other_key])
    elif kind == 3 and isinstance(place[key], int | float) and not isinstance(place[key], bool) and abs(place[key]) < 1e300:
        place[key] = place[key] * generator.choice((-1, 2, 0.5, 1000, 10**9)) + generator.choice((0, 1, -1))
    elif kind == 4 and generator.randrange(4) == 0:
        place[key] = _deep(generator.choice((10, 70, 120)))
    else:
        place[key] = copy.deepcopy(generator.choice(LEAVES))
    return record


def _somewhere(record: Any, generator: random.Random) -> tuple[Any, Any]:
    place, key = None, None
    value = record
    while isinstance(value, dict | list) and value and (place is None or generator.randrange(4)):
        place, key = value, generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = place[key]
    return place, key


def changed_bytes(content: bytes, generator: random.Random) -> bytes:
    """One to four bytes flipped, cut out, doubled, filled, or the end cut off; mostly near the beginning or the end, where headers are."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        size = max(len(data), 1)
        near = min(size, 400)
        at = generator.choice((generator.randrange(size), generator.randrange(near), size - 1 - generator.randrange(near)))
        length = generator.choice((1, 1, 2, 4, 8, 64))
        kind = generator.randrange(6)
        if kind == 0:
            del data[at : at + length]
        elif kind == 1:
            data[at:at] = data[at : at + length]
        elif kind == 2:
            data[at : at + length] = generator.choice((b"\0", b"\xff", b"[", b"9", b"\x7f")) * length
        elif kind == 3 and generator.randrange(3) == 0:
            del data[at:]
        elif data and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
    return bytes(data)


def as_json(record: Any) -> bytes:
    """JSON as Python writes it, also of what is none."""
    return json.dumps(record).encode("utf-8", "surrogatepass")


def json_mutations(records: list[Any], finish: Callable[[Any], Any] = lambda record: record) -> Mutate:
    """Changed values in three of four cases, changed bytes in the fourth."""

    def mutate(generator: random.Random) -> bytes:
        record = generator.choice(records)
        if generator.randrange(4) == 0:
            return changed_bytes(as_json(record), generator)
        for _ in range(generator.choice((1, 1, 1, 2, 3))):
            record = changed_value(record, generator)
        try:
            return as_json(finish(record))
        except (ValueError, TypeError, AttributeError):
            return as_json(record)

    return mutate
