"""What is set around a call and changes what is computed."""

from __future__ import annotations

from typing import Any

import torch


def surroundings() -> tuple[Any, ...]:
    """Autocast's dtype by device type (None where it is off), and the default dtype."""
    if not torch._C._is_any_autocast_enabled():
        return None, torch.get_default_dtype()
    autocast = tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in ("cpu", "cuda"))
    return autocast, torch.get_default_dtype()
