"""Contexts of engines: the state of one lane, where new state may be written beside the old."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from rfc_export.loaded import LoadedSet
from rfc_fx.ir.program import Argument, ProgramSet
from rfc_fx.runtime.context import CondContext, Context


class EngineContext(Context):
    """A context of a host-dispatched engine. Where new state is written beside the old, the two change places after a program that did."""

    def __init__(self, compiled: LoadedSet) -> None:
        super().__init__(compiled)
        self.beside: dict[str, Tensor] = compiled.layout.allocate(compiled.device)[0] if compiled.returns_state else {}

    def memory(self) -> dict[Argument, Tensor]:
        """What programs read and write here from step to step, and where new state goes."""
        return super().memory() | named("next", self.beside)

    def tensors(self) -> Iterable[Tensor]:
        """All that is held from step to step."""
        return (*self.state.values(), *self.beside.values())

    def ran(self, phase: str) -> None:
        """Exchange the memory of what the program wrote."""
        for name in (written := self.compiled.programs[phase].returned):  # type: ignore[attr-defined]
            self.state[name], self.beside[name] = self.beside[name], self.state[name]
        if written:
            self.bound.clear()


class CondEngineContext(EngineContext, CondContext):
    """A context of an engine whose program counts and decides."""

    def memory(self) -> dict[Argument, Tensor]:
        """What the program reads and writes, progress and log under names of their own."""
        return super().memory() | named("progress", self.state) | named("log", self.state)


def engine_context(compiled: ProgramSet) -> EngineContext:
    """Empty state of an engine."""
    assert isinstance(compiled, LoadedSet)
    return CondEngineContext(compiled) if compiled.counts_itself else EngineContext(compiled)


def named(kind: Any, tensors: Mapping[str, Tensor]) -> dict[Argument, Tensor]:
    """Tensors as programs ask for them."""
    return {(kind, name): tensor for name, tensor in tensors.items()}
