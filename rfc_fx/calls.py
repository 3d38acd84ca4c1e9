"""Calls: what a call of the model looks like. One that looks like an earlier call is recognised without being taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rfc.streams import conditioning
from rfc_fx.program import Programs
from rfc_fx.sets import Key

PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Call:
    """The arguments of one call, and the programs for them."""

    key: Key
    compiled: Programs
    leaves: list[Any]
    """The flat arguments, in the order of the signature."""
    conditioning: dict[str, Tensor]
    timestep: Any


@dataclass(frozen=True)
class Form:
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
    ) -> Form | None:
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

    def match(self, compiled: Programs, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
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


def new_call(key: Key, compiled: Programs, leaves: list[Any], arguments: Mapping[str, Any], timestep: str | None) -> Call:
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
