"""FirstBlockCache of diffusers, at the threshold that gives the number of full steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.latency.rivals.hooks import begin_generation, cache_hooks
from benchmarks.latency.rivals.rival import Attached, RivalError
from benchmarks.latency.workloads import Calls


def first_block_cache(model: nn.Module, calls: Calls, planned: list[int]) -> Attached:
    """FirstBlockCache at the threshold that makes as many steps full as wanted; which ones cannot be chosen."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.0))
    head = next(hook for hook in cache_hooks(model) if hasattr(hook, "_should_compute_remaining_blocks"))
    threshold, full = threshold_for(_changes(model, head, calls), len(planned))
    head.threshold = threshold
    note = f"threshold {threshold:.6g}"
    if len(full) != len(planned):
        note = f"no threshold gives {len(planned)} full steps, the closest ({threshold:.6g}) gives {len(full)}"
    return Attached(
        begin=lambda: begin_generation(model),
        was_full=lambda: bool(head.state_manager.get_state().should_compute),
        held=lambda: head.state_manager,
        note=note,
    )


class _SeenError(Exception):
    """Ends a step after the first block."""


@torch.no_grad()
def _changes(model: nn.Module, head: Any, calls: Calls) -> list[list[float]]:
    """Entry [a][b]: how far the first block's residual of step b is from that of step a, in FirstBlockCache's measure.

    A step's first block sees nothing of what is cached, so this needs one block a step.
    """
    residuals: list[Tensor] = []

    def look(residual: Tensor) -> bool:
        residuals.append(residual.clone())
        raise _SeenError

    head._should_compute_remaining_blocks = look
    begin_generation(model)
    for call in calls:
        try:
            model(**call)
        except _SeenError:
            continue
    del head._should_compute_remaining_blocks
    return [[float((b - a).abs().mean() / a.abs().mean()) for b in residuals] for a in residuals]


def threshold_for(changes: list[list[float]], nfc: int) -> tuple[float, list[int]]:
    """The middle of the widest range of thresholds that makes `nfc` steps full, or comes closest; and the steps."""
    steps = len(changes)
    levels = sorted({0.0, *(changes[a][b] for a in range(steps) for b in range(a + 1, steps))})
    best: tuple[int, float, float, list[int]] | None = None
    for low, high in pairwise(levels):
        middle = (low + high) / 2
        full = _full_at(changes, middle)
        ranked = (abs(len(full) - nfc), low - high, middle, full)
        best = ranked if best is None else min(best, ranked)
    if best is None:
        raise RivalError("the first block's residual never changes: every threshold skips all steps but the first")
    return best[2], best[3]


def _full_at(changes: list[list[float]], threshold: float) -> list[int]:
    full = [0]
    for step in range(1, len(changes)):
        if changes[full[-1]][step] > threshold:
            full.append(step)
    return full
