"""Choices: the configuration of a model for which nobody chose one, from what is known of the model and the device."""

from __future__ import annotations

from dataclasses import replace

import psutil  # type: ignore[import-untyped]  # it has no annotations
import torch
from torch import nn

from rfc_fx.ir.config import Config
from rfc_fx.runtime.ranks import ranks_of

REPEATS = 12
"""Blocks of one class from which on they are compiled once for all: fewer are compiled in seconds, and run faster whole."""

MEMORY_SHARE = 0.25
"""Of the free memory of the device, what the state of one context may take; guidance by separate calls takes two."""


def chosen(model: nn.Module, config: Config | None = None) -> Config:
    """The configuration for a pipeline: `config` where one is given, with what it leaves open.

    | setting | chosen | because |
    |---|---|---|
    | `hoist` | True | what needs no latent then leaves the steps: 1.4 % of a full step remain of 7.2 % (DiT-S, ESTIMATE) |
    | `regional` | from 12 equal blocks on | compiled once, not once a block; a step may take a few percent longer |
    | `granularity` | the method's default (`rfc.LogSNR`: prediction, else stack), else the finest that fits | one estimate is enough |
    | `state_budget` | a quarter of the device's free memory, of ranks the least | guidance by separate calls takes two contexts |
    """
    if not isinstance(config, Config | None):
        raise TypeError(f"accelerate: config must be a rfc_fx.Config such as rfc_fx.Config(granularity='block'), got {config!r}")
    if config is None:
        free = free_memory(model)
        for ranks in ranks_of(model):
            free = ranks.smallest("choosing the granularity", free)
        config = Config(regional=most_repeats(model) >= REPEATS, state_budget=int(MEMORY_SHARE * free))
    return config if config.hoist is not None or config.dispatch == "cond" else replace(config, hoist=True)


def most_repeats(model: nn.Module) -> int:
    """The length of the longest list of blocks of one class."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1)
    return max(map(len, lists), default=0)


def free_memory(model: nn.Module) -> int:
    """Bytes that are free where the model's weights lie."""
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
