"""Programs by call signature."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc.conditioning import Seen, conditioning
from rfc_fx.errors import SignatureError
from rfc_fx.ir.program import ProgramSet
from rfc_fx.passes.build import CompiledSet


def signature(arguments: Mapping[str, Any], model: nn.Module) -> tuple[tuple[Any, ...], list[Any]]:
    """Return what a set of programs is fixed to (names, shapes, dtypes, devices, plain values) and the flat arguments.

    Raises SignatureError for gradients: cached steps write their state in place and cannot be differentiated.
    """
    leaves, spec = pytree.tree_flatten(dict(arguments))
    parts: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.requires_grad:
                raise SignatureError(
                    f"{type(model).__name__}: an argument of shape {tuple(leaf.shape)} requires grad; "
                    "feature caching is for sampling: call under torch.no_grad() with detached tensors"
                )
            parts.append((tuple(leaf.shape), leaf.dtype, leaf.device))
        else:
            parts.append(leaf if isinstance(leaf, int | float | str | bool | type(None)) else repr(leaf))
    return (spec, *parts), leaves


MAX_SIGNATURES = 8
"""Programs are kept for this many call signatures; the one used longest ago goes first, with its state."""


Key = int
"""A number of its own for every set: cheap to look up in every step."""


class ProgramCache:
    """What was compiled, by signature; the one used last is the last."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[Key, CompiledSet] = OrderedDict()
        self._shapes: dict[Key, Any] = {}
        self._fixed: dict[Key, dict[int, Seen]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._compiled)

    def find(self, shape: Any, leaves: list[Any]) -> Key | None:
        """The set for a signature and, where a forward reads values, for the values in `leaves`; None when it must be made."""
        return next((key for key in self._compiled if self._shapes[key] == shape and self.holds(key, leaves)), None)

    def holds(self, key: Key, leaves: list[Any]) -> bool:
        """Whether the values that a forward read are in `leaves` what they were when this set was made."""
        fixed = self._fixed[key]
        if not all(seen.equals(leaves[position]) for position, seen in fixed.items()):
            return False
        self._fixed[key] = {position: Seen.now(leaves[position]) for position in fixed}
        return True

    def get(self, key: Key) -> CompiledSet:
        """Return a set."""
        return self._compiled[key]

    def add(self, shape: Any, leaves: list[Any], compiled: CompiledSet) -> Key:
        """Keep a new set."""
        key = next(self._numbers)
        self._compiled[key], self._shapes[key] = compiled, shape
        self._fixed[key] = {position: Seen.now(leaves[position]) for position in compiled.captured.decided}
        return key

    def use(self, key: Key) -> CompiledSet:
        """Return a set and count it as the one used last."""
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def evict(self) -> list[Key]:
        """Drop the sets used longest ago that are too many; return their keys."""
        dropped = []
        while len(self._compiled) > MAX_SIGNATURES:
            key, _ = self._compiled.popitem(last=False)
            del self._fixed[key], self._shapes[key]
            dropped.append(key)
        return dropped

    def clear(self) -> None:
        """Drop all."""
        for held in (self._compiled, self._fixed, self._shapes):
            held.clear()

    @property
    def latest(self) -> CompiledSet | None:
        """The set used last."""
        return next(reversed(self._compiled.values()), None)


PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Call:
    """The arguments of one call, and the programs for them."""

    key: Key
    compiled: ProgramSet
    leaves: list[Any]
    """The flat arguments, in the order of the signature."""
    conditioning: dict[str, Tensor]
    timestep: Any


@dataclass(frozen=True)
class CallPattern:
    """How a call was written and what its arguments were, but for the values of tensors."""

    key: Key
    positional: int
    named: tuple[str, ...]
    kinds: tuple[Any, ...]
    """Of every argument as written: (shape, dtype, device), or a plain value as it is."""
    order: tuple[int, ...]
    """Where the flat arguments stand among those written."""
    conditioning: tuple[tuple[str, int], ...]
    timestep: int | None

    @classmethod
    def of(
        cls, call: Call, arguments: Mapping[str, Any], timestep: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> CallPattern | None:
        """The form of a call; None where arguments lie inside others, whose insides would have to be looked at each time.

        `timestep`: name of the argument that carries it.
        """
        written = [*args, *kwargs.values()]
        if not all(isinstance(value, (Tensor, *PLAIN)) for value in written):
            return None
        names = list(arguments)
        order = (*(range(len(args))), *(len(args) + list(kwargs).index(name) for name in names[len(args) :]))
        place = dict(zip(names, order, strict=True))
        return cls(
            call.key,
            len(args),
            tuple(kwargs),
            tuple(_kind(value) for value in written),
            order,
            tuple((name, place[name.rpartition(".")[0]]) for name in call.conditioning),
            place.get(timestep) if timestep is not None else None,
        )

    def match(self, compiled: ProgramSet, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        """The call, if it has this form."""
        if len(args) != self.positional or tuple(kwargs) != self.named:
            return None
        written = (*args, *kwargs.values())
        for value, kind in zip(written, self.kinds, strict=True):
            if isinstance(value, Tensor):
                if type(kind) is not tuple or value.requires_grad:
                    return None
                shape, dtype, device = kind
                if value.shape != shape or value.dtype is not dtype or value.device != device:
                    return None
            elif type(value) is not type(kind) or value != kind:
                return None
        return Call(
            self.key,
            compiled,
            [written[place] for place in self.order],
            {name: written[place] for name, place in self.conditioning},
            None if self.timestep is None else written[self.timestep],
        )


def _kind(value: Any) -> Any:
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value


def new_call(key: Key, compiled: ProgramSet, leaves: list[Any], arguments: Mapping[str, Any], timestep: str | None) -> Call:
    """A call that was taken apart."""
    when = arguments.get(timestep) if timestep is not None else None
    return Call(key, compiled, leaves, conditioning(arguments, compiled.latent, timestep), when)


def ends(timestep: Tensor) -> tuple[float, float]:
    """Smallest and largest timestep of a batch as host numbers; one transfer where it lies on a device."""
    if timestep.numel() <= FEW:
        values = timestep.detach().flatten().tolist()
        return float(min(values)), float(max(values))
    low, high = torch.stack(torch.aminmax(timestep.detach())).tolist()
    return float(low), float(high)


FEW = 64
"""Numbers that are compared faster in Python than by a reduction."""
