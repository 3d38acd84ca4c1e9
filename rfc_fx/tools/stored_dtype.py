"""The dtype that a folder's weights are stored in, read from the headers of its safetensors files."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import torch

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of most weights in a folder's .safetensors files; None where there are none in float32, float16 or bfloat16."""
    counts = Counter[torch.dtype]()
    for path in folder.glob("*.safetensors"):
        if len(path.name.split(".")) == 2:  # model.fp16.safetensors is a variant, which is loaded by name alone
            for entry in _header(path).values():
                if dtype := _DTYPES.get(entry.get("dtype", "")):
                    counts[dtype] += prod(entry["shape"])
    return counts.most_common(1)[0][0] if counts else None


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """The table at the head of a safetensors file: eight bytes for its length, then JSON; empty for a file that is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            table = json.loads(file.read(length)) if length <= path.stat().st_size else {}
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
