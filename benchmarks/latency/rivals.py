"""Rivals: other libraries' feature caching as variants of the latency benchmark, at the number of full steps that ours has.

Each works on a copy of the model that shares its weights, is begun anew before every generation, and is asked after every step by its own
record whether the step was full; an extra generation counts the runs of a layer in a middle block and compares. What a rival cannot do
is said in its row. Dynamo remembers for a piece of code which sizes changed: of two rivals from one library the second may compile
fewer graphs.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata, util
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.latency.timing import Variant, compiled_alone
from benchmarks.latency.workloads import Calls

NOT_INSTALLED = "cache-dit is not installed: pip install rfc-fx[bench]"


RECOMPILE_LIMIT = 256
"""For all of dynamo while rivals run: with the default of 8 some of them fall back to the interpreter."""


class RivalError(Exception):
    """A rival cannot run on a model; the text says why."""


@dataclass
class Steps:
    """The phases of a generation."""

    phases: list[str] = field(default_factory=list)

    @property
    def nfc(self) -> int:
        """Number of full steps so far."""
        return self.phases.count("FULL")

    @property
    def full(self) -> list[int]:
        """The full steps."""
        return [step for step, phase in enumerate(self.phases) if phase == "FULL"]


@dataclass(frozen=True)
class Attached:
    """What a rival made of a model."""

    begin: Callable[[], None]
    """Forget the last generation."""
    was_full: Callable[[], bool]
    """What its own record says of the last step."""
    held: Callable[[], object]
    """Objects that hold its cache."""
    note: str = ""


@dataclass
class Rival:
    """A patched copy of a model, called like the model."""

    model: nn.Module
    attached: Attached
    compiles: bool
    rival: bool = True
    stats: Steps = field(default_factory=Steps)
    counted: Steps | None = None
    """Phases of the extra generation, by runs of a layer of a middle block."""
    step: Any = None

    def __post_init__(self) -> None:
        self.step = compiled_alone(self.model) if self.compiles else self.model

    def reset(self) -> None:
        """Begin a generation."""
        self.attached.begin()
        self.stats = Steps()

    def __call__(self, **arguments: Any) -> Any:
        output = self.step(**arguments)
        self.stats.phases.append("FULL" if self.attached.was_full() else "ESTIMATE")
        return output

    @property
    def uncompiled(self) -> Callable[..., Any]:
        """The same step without torch.compile; what it computes of a middle block is counted."""
        self.counted = counted = Steps()
        return lambda **arguments: self._count(counted, arguments)

    def _count(self, counted: Steps, arguments: dict[str, Any]) -> None:
        runs: list[int] = []
        hook = middle_layer(self.model).register_forward_hook(lambda *_: runs.append(1))
        try:
            self.model(**arguments)
        finally:
            hook.remove()
        self.stats.phases.append("FULL" if self.attached.was_full() else "ESTIMATE")
        counted.phases.append("FULL" if runs else "ESTIMATE")

    def state_bytes(self) -> int:
        """Bytes of the tensors that its cache holds."""
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(self.attached.held())}
        return sum(storages.values())

    def verdict(self, wanted: list[int], steps: int) -> list[str]:
        """What there is to say of the extra generation."""
        assert self.counted is not None
        full = self.counted.full
        said = [self.attached.note] if self.attached.note else []
        if len(full) == steps:
            said.append(f"never skips: a middle block ran in all {steps} steps")
        elif len(full) != len(wanted):
            said.append(f"{len(full)} full steps counted, {len(wanted)} wanted")
        elif full != wanted:
            said.append(f"full steps {full}, ours {wanted}")
        if self.stats.phases != self.counted.phases:
            said.append(f"its own record says steps {self.stats.full} were full, a middle block ran in {full}")
        return said


def rivals(model: nn.Module, calls: Calls, wanted: list[int]) -> tuple[list[Variant], dict[str, str]]:
    """Every rival, eager and compiled, with `wanted` as its full steps where it lets one choose; and why others could not be made."""
    made: list[Variant] = []
    refused: dict[str, str] = {}
    for name, attach in RIVALS.items():
        for how in ("eager", "compiled"):
            try:
                patched = copied(model)
                rival = Rival(patched, attach(patched, calls, wanted), compiles=how == "compiled")
            except Exception as error:
                refused[f"{name}, {how}"] = reason(error)
            else:
                made.append(Variant(f"{name}, {how}", rival, rival))
    return made, refused


def reason(error: Exception) -> str:
    """An error as one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, RivalError) else f"{type(error).__name__}: {text}")[:300]


def copied(model: nn.Module) -> nn.Module:
    """Modules of its own, the same weights."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    own: nn.Module = copy.deepcopy(model, shared)
    return own


def installed() -> bool:
    """Whether cache-dit is there."""
    return util.find_spec("cache_dit") is not None


def cache_dit_version() -> str | None:
    """The version of cache-dit, None where it is not installed."""
    return metadata.version("cache-dit") if installed() else None


def db_cache(model: nn.Module, calls: Calls, wanted: list[int], order: int | None = None) -> Attached:
    """DBCache with one leading block and a fixed mask of steps; with `order` its Taylor calibrator."""
    if not installed():
        raise RivalError(NOT_INSTALLED)
    import cache_dit

    for name in logging.root.manager.loggerDict:
        if name.lower().startswith("cache_dit"):
            logging.getLogger(name).setLevel(logging.WARNING)  # it logs a dozen lines for every model
    mask = [int(step in set(wanted)) for step in range(len(calls))]
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=warmup(wanted),
        steps_computation_mask=mask,
        steps_computation_policy="static",
        enable_separate_cfg=False,
    )
    keeps_text = not getattr(_blocks(model)[0][-1], "context_pre_only", False)
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
    return cache_dit.BlockAdapter(pipe=None, transformer=model, blocks=_blocks(model)[0], forward_pattern=pattern)


def first_block_cache(model: nn.Module, calls: Calls, wanted: list[int]) -> Attached:
    """FirstBlockCache at the threshold that makes as many steps full as wanted; which ones cannot be chosen."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.0))
    head = next(hook for hook in _hooks(model) if hasattr(hook, "_should_compute_remaining_blocks"))
    threshold, full = threshold_for(_changes(model, head, calls), len(wanted))
    head.threshold = threshold
    note = f"threshold {threshold:.6g}"
    if len(full) != len(wanted):
        note = f"no threshold gives {len(wanted)} full steps, the closest ({threshold:.6g}) gives {len(full)}"
    return Attached(
        begin=lambda: _begin_hooks(model),
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
    _begin_hooks(model)
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


def taylor_seer(model: nn.Module, calls: Calls, wanted: list[int]) -> Attached:
    """TaylorSeerCache of order 1 on every attention and MLP, at the interval and warm-up that make as many steps full as wanted."""
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    cached, skipped = identifiers(model)
    before, interval, full = taylor_steps(len(calls), wanted)
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=before,
        max_order=1,
        taylor_factors_dtype=next(model.parameters()).dtype,
        cache_identifiers=cached,
        skip_predict_identifiers=skipped or None,
    )
    apply_taylorseer_cache(model, config)
    hooks = list(_hooks(model))
    if not hooks:
        raise RivalError(f"TaylorSeerCache hooks no module of {type(model).__name__} for {cached[:2]} ...")

    def was_full() -> bool:
        state = hooks[0].state_manager.get_state()
        return bool(state.last_update_step == state.current_step)

    short = "" if len(full) == len(wanted) else f"no interval and warm-up give {len(wanted)} full steps, the closest {len(full)}"
    return Attached(lambda: _begin_hooks(model), was_full, lambda: [hook.state_manager for hook in hooks], short)


def taylor_steps(steps: int, wanted: list[int]) -> tuple[int, int, list[int]]:
    """(leading full steps, interval, full steps) that come closest in number, then in steps; the first gap is always two steps."""
    ranked = []
    for before in range(1, len(wanted) + 1):
        for interval in range(1, steps + 1):
            full = [step for step in range(steps) if step < before or (step - before - 1) % interval == 0]
            apart = sum(abs(a - b) for a, b in zip(full, wanted, strict=False))
            ranked.append((abs(len(full) - len(wanted)), apart, before, interval, full))
    return min(ranked)[2:]


def identifiers(model: nn.Module) -> tuple[list[str], list[str]]:
    """Patterns of the modules whose outputs are forecast, and of those that need not run.

    Where attention and MLP are parallel, the projection that both leave through is forecast.
    """
    cached: list[str] = []
    skipped: list[str] = []
    modules = dict(model.named_modules())
    for list_name, blocks in ((name, module) for name, module in modules.items() if isinstance(module, nn.ModuleList)):
        for place, block in enumerate(blocks):
            where = f"{list_name}.{place}"
            children = dict(block.named_children())
            if {"attn", "proj_mlp", "proj_out"} <= children.keys():
                cached.append(f"{where}.proj_out")
                skipped += [f"{where}.attn", f"{where}.proj_mlp"]
            else:
                likely = (name for name, child in children.items() if hasattr(child, "to_q") or type(child).__name__ == "FeedForward")
                cached += [f"{where}.{name}" for name in likely]
    return [re.escape(name) for name in cached], [re.escape(name) for name in skipped]


def _hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            yield from (hook for hook in registry.hooks.values() if hasattr(hook, "state_manager"))


def _begin_hooks(model: nn.Module) -> None:
    """Reset, and name the context again: the reset takes the name away, and only pipelines and some models have `cache_context`."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()
    _set_cache_context(model, CacheContext("generation"))


def warmup(full: list[int]) -> int:
    """Number of leading full steps."""
    return next((place for place, step in enumerate(full) if place != step), len(full))


def _blocks(model: nn.Module) -> list[nn.ModuleList]:
    found = [child for name, child in model.named_children() if isinstance(child, nn.ModuleList) and "block" in name]
    if not found:
        raise RivalError(f"{type(model).__name__}: no list of blocks among its children")
    return found


def middle_layer(model: nn.Module) -> nn.Module:
    """The projection to queries in the middle block: it runs if and only if the block's attention does."""
    blocks = _blocks(model)[0]
    found: nn.Module = next(module for name, module in blocks[len(blocks) // 2].named_modules() if name.endswith("to_q"))
    return found


def _tensors(held: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Tensors in containers and in the attributes of plain objects; modules are no caches."""
    seen = set() if seen is None else seen
    if id(held) in seen or isinstance(held, nn.Module | type | torch.dtype | torch.device):
        return
    seen.add(id(held))
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for value in list(held.values()):
            yield from _tensors(value, seen)
    elif isinstance(held, list | tuple):
        for value in held:
            yield from _tensors(value, seen)
    elif hasattr(held, "__dict__"):
        yield from _tensors(vars(held), seen)


RIVALS: dict[str, Callable[[nn.Module, Calls, list[int]], Attached]] = {
    "cache-dit DBCache": db_cache,
    "cache-dit DBCache+TaylorSeer": lambda model, calls, wanted: db_cache(model, calls, wanted, order=1),
    "diffusers FirstBlockCache": first_block_cache,
    "diffusers TaylorSeerCache": taylor_seer,
}
