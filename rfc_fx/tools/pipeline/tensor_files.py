"""Tensors that a pipeline is called with, such as embeddings of a prompt, read from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.load import one_line

TENSORS = (".safetensors", ".pt", ".npy")


def read_tensor(option: str, name: str, path: Path) -> Tensor:
    """The only tensor of a file, or the one called `name`; OptionError where there is none."""
    if not path.is_file():
        raise OptionError(f"{option} {path}: no such file")
    try:
        content = _content(path)
    except Exception as error:
        raise OptionError(f"{option} {path}: expected a file with a tensor: {one_line(error, width=120)}") from error
    if isinstance(content, dict):
        content = content.get(name, next(iter(content.values())) if len(content) == 1 else None)
    if not isinstance(content, Tensor):
        raise OptionError(f"{option} {path}: expected one tensor, or one called {name}")
    return content


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.from_numpy(np.load(path)) if path.suffix == ".npy" else torch.load(path, map_location="cpu", weights_only=True)
