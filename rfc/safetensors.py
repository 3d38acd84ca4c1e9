"""Safetensors files, read with nothing but torch: a length, a JSON header, and the bytes of the tensors."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

MOST_HEADER_BYTES = 100_000_000
"""The format's own bound."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; ValueError with the place for anything that is no such file, or is cut off."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MOST_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"{path}: no safetensors file, or one that is cut off ({len(data)} bytes)")
    try:
        header = json.loads(data[8 : 8 + length])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _tensor(data, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no safetensors file: {type(error).__name__}: {error}") from error


def _tensor(data: bytearray, start: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = TYPES[entry["dtype"]], [int(length) for length in entry["shape"]]
    begin, end = (int(place) for place in entry["data_offsets"])
    count = prod(shape)
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data) - start or end - begin != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} lies in bytes {begin} to {end} of {len(data) - start}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + begin).reshape(shape).clone()
