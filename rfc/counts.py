"""Counts: where a generation stands between its full steps, as plain numbers on the host or as tensors in a graph."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """Where a generation stands: plain numbers on the host, 0-d float32 tensors in a graph."""

    since: Any = 0
    """Steps since the last full one."""
    gap: Any = 0
    """Steps between the two latest full ones; 0 while there is only one."""
    anchors: Any = 0
    """Full steps so far."""
    total: Any = 0.0
    """The error that counts since the last full step, in float32."""


def observe(counts: Counts, eps: Any, *, accumulates: bool) -> Counts:
    """The counts with the error of a step; it counts from the first full step of the generation on."""
    known, total = counts.anchors > 0, counts.total
    if isinstance(total, Tensor):
        total = total + torch.where(known, eps, torch.zeros_like(total)) if accumulates else torch.where(known, eps, total)
    elif known:
        total = float32(total + eps if accumulates else eps)
    return counts._replace(total=total)


def advance(counts: Counts, is_full: Any) -> Counts:
    """The counts after a step."""
    k, gap, anchors, total = counts.since + 1, counts.gap, counts.anchors, counts.total
    if not isinstance(is_full, Tensor):
        return Counts(0, k if anchors else 0, anchors + 1, 0.0) if is_full else Counts(k, gap, anchors, total)
    zero = torch.zeros_like(k)
    return Counts(
        torch.where(is_full, zero, k),
        torch.where(is_full, torch.where(anchors > 0, k, zero), gap),
        anchors + is_full.to(torch.float32),
        torch.where(is_full, zero, total),
    )


def float32(value: float) -> float:
    """The nearest float32 number. A sum of two of them, rounded once in float64 and once here, is their sum in float32."""
    return ctypes.c_float(value).value
