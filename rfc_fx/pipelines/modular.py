"""Modular pipelines of diffusers: components exchanged, offloading paused, and the pass that a guider prepares."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


def put(pipe: Any, parts: Mapping[str, nn.Module]) -> None:
    """Exchange components of any pipeline, in its components manager too; specifications and configuration go on naming what was loaded."""
    manager = getattr(pipe, "_components_manager", None)
    for name, part in parts.items():
        if manager is not None:
            _exchange(manager, getattr(pipe, name), part)
        setattr(pipe, name, part)


def _exchange(manager: Any, before: nn.Module, part: nn.Module) -> None:
    """Put one component in the place of another, under the key that a manager would give it; nothing is moved to another device."""
    keys = {key: f"{manager._id_to_name(key)}_{id(part)}" for key, held in manager.components.items() if held is before}
    if not keys:
        return
    components = [(keys.get(key, key), part if key in keys else held) for key, held in manager.components.items()]
    times = [(keys.get(key, key), time) for key, time in manager.added_time.items()]
    manager.components, manager.added_time = OrderedDict(components), OrderedDict(times)
    for collection, members in manager.collections.items():
        manager.collections[collection] = {keys.get(key, key) for key in members}


@contextmanager
def offloading_paused(pipe: Any) -> Iterator[None]:
    """No hooks of a components manager's offloading inside; behind, each component that it then holds has one."""
    manager = getattr(pipe, "_components_manager", None)
    if manager is None or not manager._auto_offload_enabled:
        yield
        return
    device, strategy = manager._auto_offload_device, manager._offload_strategy
    manager.disable_auto_cpu_offload()
    try:
        yield
    finally:
        manager.enable_auto_cpu_offload(device, offload_strategy=strategy)


def guidance_pass(pipe: Any, denoiser: str) -> str | None:
    """Name of the pass that the guider of a denoiser ("guider_2" of "transformer_2") prepares; None where no guider says so.

    A guider says whether a pass is conditional, if it counts passes at all; the pass with layers skipped is conditional, too.
    """
    guider = getattr(pipe, denoiser.replace("transformer", "guider"), None)
    if not getattr(guider, "_count_prepared", 0):
        return None
    try:
        return "cond" if guider.is_conditional else "uncond"  # type: ignore[union-attr]  # counted, so it is there
    except (AttributeError, NotImplementedError):
        return None


def release_guiders(pipe: Any, denoisers: Iterable[nn.Module]) -> None:
    """Take the hooks of guiders off denoisers whose pass has failed; a model that keeps them would leave layers out for good."""
    guiders = [part for part in pipe.components.values() if callable(getattr(part, "cleanup_models", None))]
    for guider, denoiser in itertools.product(guiders, denoisers):
        guider.cleanup_models(denoiser)


def progress_is_hidden(pipe: Any) -> bool:
    """Whether the progress bar of a pipeline is off; a modular one has one for each of its loops."""
    loops = [pipe, *_blocks(getattr(pipe, "_blocks", None))]
    return any(bool(getattr(each, "_progress_bar_config", {}).get("disable")) for each in loops)


def _blocks(block: Any) -> Iterator[Any]:
    for each in getattr(block, "sub_blocks", {}).values():
        yield each
        yield from _blocks(each)
