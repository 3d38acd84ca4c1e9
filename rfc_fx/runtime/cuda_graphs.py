"""CUDA graphs: whether programs run as such, and whether the weights lie where they lay when the graphs were recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

MODES = ("reduce-overhead", "max-autotune")
"""Of torch.compile, which record CUDA graphs."""


def asks_for_graphs(settings: Mapping[str, Any]) -> bool:
    """Whether these arguments of torch.compile ask for CUDA graphs."""
    return settings.get("mode") in MODES or bool((settings.get("options") or {}).get("triton.cudagraphs"))


def are_recorded(device: torch.device) -> bool:
    """Whether this thread has recorded CUDA graphs on that device, whoever asked for them."""
    trees = sys.modules.get("torch._inductor.cudagraph_trees")  # what has not been imported has recorded nothing
    try:
        return trees is not None and trees.get_manager(device.index or 0, create_if_none_exists=False) is not None
    except AssertionError:  # a thread in which no graph can be recorded
        return False


class Addresses:
    """Where the weights of a model lay when a generation began."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._last: int | None = None

    def moved_on(self) -> torch.device | None:
        """The CUDA device on which the weights lie elsewhere than when this was asked last; None where they do not."""
        weight = next((weight for weight in self._model.parameters() if weight.is_cuda and type(weight.data) is torch.Tensor), None)
        if weight is None:
            return None
        before, self._last = self._last, weight.data_ptr()
        return None if before in (None, self._last) else weight.device
