"""DBCache of cache-dit."""

from __future__ import annotations

import logging
from importlib import metadata, util
from typing import Any

from torch import nn

from benchmarks.latency.rivals.rival import Attached, RivalError, blocks_of
from benchmarks.latency.workloads import Calls

NOT_INSTALLED = "cache-dit is not installed: pip install rfc-fx[bench]"


def installed() -> bool:
    """Whether cache-dit is there."""
    return util.find_spec("cache_dit") is not None


def cache_dit_version() -> str | None:
    """The version of cache-dit, None where it is not installed."""
    return metadata.version("cache-dit") if installed() else None


def db_cache(model: nn.Module, calls: Calls, planned: list[int], order: int | None = None) -> Attached:
    """DBCache with one leading block and a fixed mask of steps; with `order` its Taylor calibrator."""
    if not installed():
        raise RivalError(NOT_INSTALLED)
    import cache_dit

    for name in logging.root.manager.loggerDict:
        if name.lower().startswith("cache_dit"):
            logging.getLogger(name).setLevel(logging.WARNING)  # it logs a dozen lines for every model
    mask = [int(step in set(planned)) for step in range(len(calls))]
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=warmup(planned),
        steps_computation_mask=mask,
        steps_computation_policy="static",
        enable_separate_cfg=False,
    )
    keeps_text = not getattr(blocks_of(model)[0][-1], "context_pre_only", False)
    calibrator = None
    if order is not None:
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order, enable_encoder_calibrator=keeps_text)
    cache_dit.enable_cache(_adapted(model), cache_config=config, calibrator_config=calibrator)
    patched: Any = model
    manager = patched._context_manager

    def contexts() -> list[Any]:
        return [manager.get_context(name) for name in patched._context_names]

    note = "" if keeps_text or order is None else "no calibrator for the text: the last block returns none, and with one it fails"
    return Attached(
        begin=lambda: cache_dit.refresh_context(model),
        was_full=lambda: any(context.get_current_step() not in context.cached_steps for context in contexts()),
        held=contexts,
        note=note,
    )


def _adapted(model: nn.Module) -> Any:
    """The model as cache-dit takes it: classes that it does not know by name need the order of their blocks' arguments."""
    import cache_dit

    if not type(model).__name__.startswith("SD3"):
        return model
    pattern = cache_dit.ForwardPattern.Pattern_1
    return cache_dit.BlockAdapter(pipe=None, transformer=model, blocks=blocks_of(model)[0], forward_pattern=pattern)


def warmup(full: list[int]) -> int:
    """Number of leading full steps."""
    return next((index for index, step in enumerate(full) if index != step), len(full))
