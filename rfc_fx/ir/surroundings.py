"""What is set around a call and changes what is computed."""

from __future__ import annotations

from typing import Any

import torch


def surroundings() -> tuple[Any, ...]:
    """Autocast's dtype by device type (None: off), and the default dtype."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    autocast = tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds)
    return (*autocast, torch.get_default_dtype())
