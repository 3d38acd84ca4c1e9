"""TaylorSeerCache of diffusers, at the interval that gives the number of full steps."""

from __future__ import annotations

import re

from torch import nn

from benchmarks.latency.rivals.hooks import begin_generation, cache_hooks
from benchmarks.latency.rivals.rival import Attached, RivalError
from benchmarks.latency.workloads import Calls


def taylor_seer(model: nn.Module, calls: Calls, planned: list[int]) -> Attached:
    """TaylorSeerCache of order 1 on every attention and MLP, at the interval and warm-up that make as many steps full as wanted."""
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    cached, skipped = identifiers(model)
    before, interval, full = taylor_steps(len(calls), planned)
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=before,
        max_order=1,
        taylor_factors_dtype=next(model.parameters()).dtype,
        cache_identifiers=cached,
        skip_predict_identifiers=skipped or None,
    )
    apply_taylorseer_cache(model, config)
    hooks = list(cache_hooks(model))
    if not hooks:
        raise RivalError(f"TaylorSeerCache hooks no module of {type(model).__name__} for {cached[:2]} ...")

    def was_full() -> bool:
        state = hooks[0].state_manager.get_state()
        return bool(state.last_update_step == state.current_step)

    short = "" if len(full) == len(planned) else f"no interval and warm-up give {len(planned)} full steps, the closest {len(full)}"
    return Attached(lambda: begin_generation(model), was_full, lambda: [hook.state_manager for hook in hooks], short)


def taylor_steps(steps: int, planned: list[int]) -> tuple[int, int, list[int]]:
    """(leading full steps, interval, full steps) that come closest in number, then in steps; the first gap is always two steps."""
    ranked = []
    for before in range(1, len(planned) + 1):
        for interval in range(1, steps + 1):
            full = [step for step in range(steps) if step < before or (step - before - 1) % interval == 0]
            apart = sum(abs(a - b) for a, b in zip(full, planned, strict=False))
            ranked.append((abs(len(full) - len(planned)), apart, before, interval, full))
    return min(ranked)[2:]


def identifiers(model: nn.Module) -> tuple[list[str], list[str]]:
    """Patterns of the modules whose outputs are forecast, and of those that need not run.

    Where attention and MLP are parallel, the projection that both leave through is forecast.
    """
    cached: list[str] = []
    skipped: list[str] = []
    modules = dict(model.named_modules())
    for list_name, blocks in ((name, module) for name, module in modules.items() if isinstance(module, nn.ModuleList)):
        for index, block in enumerate(blocks):
            where = f"{list_name}.{index}"
            children = dict(block.named_children())
            if {"attn", "proj_mlp", "proj_out"} <= children.keys():
                cached.append(f"{where}.proj_out")
                skipped += [f"{where}.attn", f"{where}.proj_mlp"]
            else:
                likely = (name for name, child in children.items() if hasattr(child, "to_q") or type(child).__name__ == "FeedForward")
                cached += [f"{where}.{name}" for name in likely]
    return [re.escape(name) for name in cached], [re.escape(name) for name in skipped]
