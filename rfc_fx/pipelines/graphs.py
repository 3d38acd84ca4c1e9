"""CUDA graphs: whether the programs of an accelerated pipeline run as such, and why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from rfc_fx.runtime.cached_model import CachedModel

log = logging.getLogger("rfc_fx")

ON_THE_CPU = "the model is on cpu"

GRAPHS = {"mode": "reduce-overhead"}
"""Arguments of torch.compile for CUDA graphs."""


def against_graphs(pipe: Any, model: CachedModel) -> str | None:
    """What stands against CUDA graphs for a model of a pipeline; None where nothing does."""
    if getattr(pipe, "_all_hooks", None) or getattr(model.model, "_hf_hook", None) is not None:
        return "offloading moves the weights, and every graph would be recorded anew"
    device = next((weight.device for weight in model.model.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return f"the model is on {device.type}"
    if model.options.dispatch == "cond":
        return "the host reads the decision in the graph"
    return None


def settle_graphs(pipe: Any, name: str, model: CachedModel, options: Mapping[str, Any]) -> None:
    """Compile with CUDA graphs where they hold, by `options` alone where they do not; asked before each call, as a pipeline may move."""
    graphs, own = {**options, **GRAPHS}, model.compile_settings
    if own not in (options, graphs):  # not compiled, or as another pipeline of the same model asked
        return
    reason = against_graphs(pipe, model)
    wanted = graphs if reason is None else options
    if own != wanted:
        log.info("%s: CUDA graphs: %s", name, reason or "yes")
        model.compile(**wanted)
