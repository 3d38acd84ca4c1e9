"""Frames: which Python torch.compile looks at. Only the programs are frames for it; the lines between them are the host's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")


R = TypeVar("R")


def skip_own_frame(function: Callable[P, R]) -> Callable[P, R]:
    """Run this function's own lines as they stand, and let torch.compile take what it calls.

    `torch.compiler.disable(recursive=False)` alone has its decision made anew in every call, which takes longer (0.6 ms on a slow core)
    than all that the lines do; a code object that is marked to be skipped is passed over at once.
    """
    skip_code: Callable[..., Any] | None = getattr(torch._dynamo.eval_frame, "skip_code", None)
    if skip_code is not None:
        skip_code(function.__code__)
    wrapped: Callable[P, R] = torch.compiler.disable(recursive=False)(function)
    return wrapped
