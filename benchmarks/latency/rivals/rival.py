"""A rival: another library's feature cache on a copy of the model, its phases by its own record and by the runs of a middle layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.latency.timing import compiled_alone
from rfc.phase import ESTIMATE, FULL


class RivalError(Exception):
    """A rival cannot run on a model; the text says why."""


@dataclass
class Steps:
    """The phases of a generation."""

    phases: list[str] = field(default_factory=list)

    @property
    def nfc(self) -> int:
        """Number of full steps so far."""
        return self.phases.count(FULL.name)

    @property
    def full(self) -> list[int]:
        """The full steps."""
        return [step for step, phase in enumerate(self.phases) if phase == FULL.name]


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
    backend: str = "inductor"
    """Of torch.compile."""
    rival: bool = True
    stats: Steps = field(default_factory=Steps)
    counted: Steps | None = None
    """Phases of the extra generation, by runs of a layer of a middle block."""
    step: Any = None

    def __post_init__(self) -> None:
        self.step = compiled_alone(self.model, self.backend) if self.compiles else self.model

    def reset(self) -> None:
        """Begin a generation."""
        self.attached.begin()
        self.stats = Steps()

    def __call__(self, **arguments: Any) -> Any:
        output = self.step(**arguments)
        self.stats.phases.append(FULL.name if self.attached.was_full() else ESTIMATE.name)
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
        self.stats.phases.append(FULL.name if self.attached.was_full() else ESTIMATE.name)
        counted.phases.append(FULL.name if runs else ESTIMATE.name)

    def state_bytes(self) -> int:
        """Bytes of the tensors that its cache holds."""
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(self.attached.held())}
        return sum(storages.values())

    def verdict(self, planned: list[int], steps: int) -> list[str]:
        """What there is to say of the extra generation."""
        assert self.counted is not None
        full = self.counted.full
        said = [self.attached.note] if self.attached.note else []
        if len(full) == steps:
            said.append(f"never skips: a middle block ran in all {steps} steps")
        elif len(full) != len(planned):
            said.append(f"{len(full)} full steps counted, {len(planned)} wanted")
        elif full != planned:
            said.append(f"full steps {full}, ours {planned}")
        if self.stats.phases != self.counted.phases:
            said.append(f"its own record says steps {self.stats.full} were full, a middle block ran in {full}")
        return said


def reason(error: Exception) -> str:
    """An error as one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, RivalError) else f"{type(error).__name__}: {text}")[:300]


def copied(model: nn.Module) -> nn.Module:
    """Modules of its own, the same weights."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    own: nn.Module = copy.deepcopy(model, shared)
    return own


def blocks_of(model: nn.Module) -> list[nn.ModuleList]:
    lists = [child for name, child in model.named_children() if isinstance(child, nn.ModuleList) and "block" in name]
    if not lists:
        raise RivalError(f"{type(model).__name__}: no list of blocks among its children")
    return lists


def middle_layer(model: nn.Module) -> nn.Module:
    """The projection to queries in the middle block: it runs if and only if the block's attention does."""
    blocks = blocks_of(model)[0]
    layer: nn.Module = next(module for name, module in blocks[len(blocks) // 2].named_modules() if name.endswith("to_q"))
    return layer


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
