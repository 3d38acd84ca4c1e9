"""Stopwatch: what the steps of a model take, by phase."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from rfc.phase import PhaseName

LEAST = 2
"""Measured steps of a phase, the first of them left out: it may compile."""


class Stopwatch:
    """Measures the steps of a model, on CUDA without waiting for any of them."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._steps: list[tuple[Any, Any, PhaseName]] = []

    def now(self) -> Any:
        """A moment."""
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def note(self, begin: Any, phase: PhaseName) -> None:
        """A step has been taken since `begin`."""
        self._steps.append((begin, self.now(), phase))

    def medians(self) -> tuple[float, float] | None:
        """Seconds of a full and of an estimated step; None where too few were measured. Waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize()
        taken: dict[PhaseName, list[float]] = {}
        for begin, end, phase in self._steps:
            taken.setdefault(phase, []).append(begin.elapsed_time(end) / 1000 if self._is_cuda else end - begin)
        kept = [taken.get(phase, [])[1:] for phase in ("FULL", "ESTIMATE")]
        return (statistics.median(kept[0]), statistics.median(kept[1])) if min(map(len, kept)) >= LEAST else None
