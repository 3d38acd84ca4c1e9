"""Parallel: a model whose sequence lies on several ranks (diffusers' context parallel), and models spread in ways no graph can hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rfc_fx.errors import CaptureError

CONTEXT_PARALLEL = "diffusers.hooks.context_parallel"
"""Where the hooks are defined that split a sequence over ranks and gather it again."""


@dataclass(frozen=True)
class Parallel:
    """Over which ranks the tokens of a model lie, and where they are split."""

    group: Any
    """torch.distributed.ProcessGroup of the ranks that share one sequence."""
    splits: frozenset[tuple[int, int | None]]
    """(axis, rank of the tensor) of what is split; None: of any rank."""
    ring: int = 1
    """Ranks that pass keys and values on instead of exchanging heads."""
    is_uneven: bool = False
    """Whether ranks may hold different numbers of tokens."""

    @property
    def name(self) -> str:
        """Of the group, as collectives in a graph name it."""
        return str(self.group.group_name)

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return int(self.group.size())

    @property
    def rank(self) -> int:
        """Of this process in the group."""
        return int(self.group.rank())


def parallel_of(model: nn.Module) -> Parallel | None:
    """The ranks that share a model's sequence, as its hooks have it; None where it lies on one."""
    hooks = [hook for module in model.modules() for _, hook in hooks_of_diffusers(module) if is_context_parallel(hook)]
    if not hooks:
        return None
    config = hooks[0].parallel_config
    if any(hook.parallel_config is not config for hook in hooks):
        raise CaptureError(f"{type(model).__name__}: hooks of two context-parallel configurations are on it; call enable_parallelism once")
    parts = [part for hook in hooks for part in _parts(hook.metadata)]
    splits = frozenset((part.split_dim, part.expected_dims) for part in parts if hasattr(part, "split_dim"))
    uneven = bool(getattr(config, "ulysses_anything", False) or getattr(config, "ring_anything", False))
    return Parallel(config._flattened_mesh.get_group(), splits, config.ring_degree or 1, uneven)


def _parts(plan: Any) -> Iterator[Any]:
    """What a hook's plan says of single tensors."""
    for part in plan.values() if isinstance(plan, dict) else plan:
        if isinstance(part, list | tuple):
            yield from part
        elif part is not None:
            yield part


def hooks_of_diffusers(module: nn.Module) -> list[tuple[str, Any]]:
    """The hooks of diffusers on a module, by name."""
    return list(getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).items())


def is_context_parallel(hook: Any) -> bool:
    """Whether a hook splits or gathers a sequence, which a graph can hold."""
    return type(hook).__module__ == CONTEXT_PARALLEL


def refuse_spread(model: nn.Module) -> None:
    """Raise CaptureError for a model that is spread over devices as no graph can hold it: by weights, or by patches of a pipeline."""
    kind = type(model).__name__
    for name, module in model.named_modules():
        where = f"{kind}{f'.{name}' if name else ''}"
        bases = {base.__name__ for base in type(module).__mro__}
        if "FSDPModule" in bases or "FullyShardedDataParallel" in bases:
            raise CaptureError(
                f"{where}: its weights are sharded by FSDP, which gathers them in hooks that a graph would lose; load the model whole on "
                "every rank and split its sequence: model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=...))"
            )
        if "DistributedDataParallel" in bases:
            raise CaptureError(f"{where}: wrapped for training by DistributedDataParallel; transform the model inside, {where}.module")
        if any("PipeFusion" in base or base.startswith("xFuser") for base in bases):
            raise CaptureError(
                f"{where}: runs under PipeFusion of xDiT, which keeps activations of other patches in a forward of its own; load the "
                "model of diffusers and split its sequence: model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=...))"
            )
    if weight := next((name for name, weight in model.named_parameters() if _is_distributed(weight)), None):
        raise CaptureError(
            f"{kind}: {weight} is a DTensor (tensor parallel, FSDP2), which torch.export cannot trace, and whose state every rank would "
            "hold whole; load the model without it and split its sequence: model.enable_parallelism(config=ContextParallelConfig("
            "ulysses_degree=...))"
        )


def _is_distributed(weight: torch.Tensor) -> bool:
    return any(kind.__name__ == "DTensor" for kind in type(weight).__mro__)
