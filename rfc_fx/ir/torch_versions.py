"""What differs between the versions of torch that are supported, 2.11 to 2.14; everything else asks here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
"""(major, minor)."""


def keeps_order_of_overwrites() -> bool:
    """Whether a loop of Inductor's C++ back end that reads and overwrites a buffer reads it first: that of torch 2.11 may write first."""
    return TORCH >= (2, 13)


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of Inductor's options those that this torch has: 2.11 writes no line tables and has no setting for them."""
    known = set(torch._inductor.list_options())
    return {name: value for name, value in options.items() if name in known}


def isolated_recompiles() -> dict[str, bool]:
    """For `torch.compile` calls that share no compiled code with others; torch 2.11 has no such setting."""
    return {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
