"""CUDA graphs: how often Inductor left a graph out, and how many were recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def graph_counts(device: torch.device) -> dict[str, int]:
    """Graphs left out and recordings so far, in this process."""
    if device.type != "cuda":
        return {"skipped": 0, "recorded": 0}
    from torch._inductor.cudagraph_trees import get_container

    manager = get_container(device.index or torch.cuda.current_device()).tree_manager
    skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    return {"skipped": int(skipped), "recorded": 0 if manager is None else recordings(manager.get_roots())}


def recordings(nodes: Iterable[Any]) -> int:
    """Nodes of the trees: each path of programs has a recording of its own."""
    return sum(1 + recordings(child for children in node.children.values() for child in children) for node in nodes)


def since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """The difference."""
    return {name: now[name] - before[name] for name in now}
