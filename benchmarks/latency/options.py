"""Options that several latency commands share."""

from __future__ import annotations

from collections.abc import Collection

import torch
import typer

from benchmarks.latency.methods import KNOWN
from benchmarks.latency.workloads import WORKLOADS

CHOSEN = (
    "LogSNR, module",
    "LogSNR, stack",
    "LogSNR, output",
    "LogSNR, prediction",
    "Taylor m=1",
    "Taylor m=1, bfloat16",
    "RFE m=1",
    "RFE m=1, sketch 16, bfloat16",
    "RFE m=1, sketch 16, int8",
)


def checked(
    model: str, methods: str, dtype: str, device: str, known: Collection[str] = KNOWN
) -> tuple[list[str], torch.dtype, torch.device]:
    """(names of methods, dtype, device); raises BadParameter for what is unknown."""
    if model not in WORKLOADS:
        raise typer.BadParameter(f"unknown model {model!r}; known: {', '.join(WORKLOADS)}")
    names = [name.strip() for name in methods.split(";")] if methods != "all" else list(known)
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"unknown methods {', '.join(unknown)}; known: {'; '.join(known)}")
    precision = getattr(torch, dtype, None)
    if precision not in (torch.float32, torch.bfloat16, torch.float16):
        raise typer.BadParameter(f"unknown dtype {dtype!r}; known: float32, bfloat16, float16")
    return names, precision, torch.device(device)
