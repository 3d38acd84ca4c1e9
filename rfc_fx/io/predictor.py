"""The folder of a predictor, written whole: weights first, then the description that makes it one (`rfc.predictor` reads it)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rfc.predictor import CONFIG, WEIGHTS, Predictor, description
from rfc_fx.io.atomic import write_atomically


def write_predictor(folder: str | Path, model: nn.Module, predictor: Predictor, dtypes: Mapping[str, torch.dtype] | None = None) -> Path:
    """Write a predictor that was trained for `model`, and return its folder, which `rfc.DisCa(predictor=...)` takes.

    `dtypes`: what weights are kept in, by the beginning of their names ("" for all others); without, as they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = sorted((dtypes or {}).items(), key=lambda kind: -len(kind[0]))
    weights = {}
    for name, tensor in predictor.state_dict().items():
        dtype = next((dtype for begin, dtype in kinds if name.startswith(begin)), tensor.dtype)
        weights[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    write_atomically(folder / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    text = json.dumps(description(model, predictor), indent=1) + "\n"
    write_atomically(folder / CONFIG, lambda path: path.write_text(text))
    return folder
