"""The dtype that a folder's weights are stored in, read from the headers of its safetensors files."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

import torch

from rfc_fx.tools.model_files import header

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of most weights in a folder's .safetensors files; None where there are none in float32, float16 or bfloat16."""
    counts = Counter[torch.dtype]()
    for path in folder.glob("*.safetensors"):
        if len(path.name.split(".")) == 2:  # model.fp16.safetensors is a variant, which is loaded by name alone
            for entry in header(path).values():
                shape = entry.get("shape") if isinstance(entry, dict) else None
                if isinstance(shape, list) and (dtype := _DTYPES.get(str(entry.get("dtype")))):
                    counts[dtype] += prod(length for length in shape if isinstance(length, int))
    return counts.most_common(1)[0][0] if counts else None
