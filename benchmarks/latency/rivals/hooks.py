"""The cache hooks of diffusers on a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def cache_hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            yield from (hook for hook in registry.hooks.values() if hasattr(hook, "state_manager"))


def begin_generation(model: nn.Module) -> None:
    """Reset, and name the context again: the reset takes the name away, and only pipelines and some models have `cache_context`."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()
    _set_cache_context(model, CacheContext("generation"))
