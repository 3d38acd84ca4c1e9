"""Calls: the arguments of one call taken apart, and recognised when a later call is written in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc.arguments import FEW, timestep_value
from rfc.conditioning import conditioning
from rfc_fx.errors import SignatureError
from rfc_fx.ir.program import ProgramSet
from rfc_fx.ir.surroundings import surroundings
from rfc_fx.runtime.picking import Pick, picker

Key = int
"""Integer id of a program set; cheaper to hash than a call signature."""


class Call(NamedTuple):
    """The arguments of one call, and the programs for them."""

    key: Key
    compiled: ProgramSet
    inputs: Sequence[Tensor]
    """The tensors that programs read, in the order of `ProgramSet.placeholders`."""
    conditioning: dict[str, Tensor]
    timestep: Any


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
            parts.append(leaf if isinstance(leaf, PLAIN) else repr(leaf))
    return (spec, surroundings(), *parts), leaves


def described(arguments: Mapping[str, Any]) -> str:
    """The arguments of a call in words: tensors by shape and dtype, all else by value or, where that is long, by type."""

    def words(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
            return f"[{', '.join(map(words, value))}]"
        return text if len(text := repr(value)) <= 40 else type(value).__name__

    return ", ".join(f"{name} {words(value)}" for name, value in arguments.items()) or "no arguments"


def with_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None, position: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with a timestep that is a plain number as a tensor: the number would be a constant, and every step captured anew."""
    given = args[position] if position < len(args) else kwargs.get(name or "")
    if name is None or not isinstance(given, int | float) or isinstance(given, bool):
        return args, kwargs
    device = next((leaf.device for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    lifted = torch.tensor(given, device=device)
    if position < len(args):
        return (*args[:position], lifted, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: lifted}


PLAIN = (int, float, str, bool, type(None))
"""Types of arguments that are constants of a program set."""


def new_call(key: Key, compiled: ProgramSet, leaves: list[Any], arguments: Mapping[str, Any], timestep: str | None) -> Call:
    """A call that was taken apart."""
    when = arguments.get(timestep) if timestep is not None else None
    return Call(key, compiled, compiled.inputs(leaves), conditioning(arguments, compiled.latent, timestep), when)


@dataclass(frozen=True)
class CallPattern:
    """How a call was written and what its arguments were, but for the values of tensors."""

    key: Key
    positional: int
    named: tuple[str, ...]
    kinds: tuple[tuple[int, Any], ...]
    """Of every argument as written its index, and (shape, dtype, device), or a plain value as it is."""
    leaves: tuple[int, ...]
    """Index among the arguments as written, for every flat argument in the order of the signature."""
    inputs_of: Pick
    """Takes the inputs of the programs out of the arguments as written."""
    conditioning: tuple[tuple[str, int], ...]
    """Names of the conditioning, and their index among the arguments as written."""
    timestep: int | None
    surroundings: tuple[Any, ...]

    @classmethod
    def of(
        cls, call: Call, arguments: Mapping[str, Any], timestep: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> CallPattern | None:
        """The pattern of a call; None where arguments lie inside others, or are complex: these are taken apart each time.

        `timestep`: name of the argument that carries it.
        """
        written = [*args, *kwargs.values()]
        if not all(isinstance(value, PLAIN) or (isinstance(value, Tensor) and not value.is_complex()) for value in written):
            return None
        names = list(arguments)
        order = [*range(len(args)), *(len(args) + list(kwargs).index(name) for name in names[len(args) :])]
        index = dict(zip(names, order, strict=True))
        return cls(
            call.key,
            len(args),
            tuple(kwargs),
            tuple(enumerate((value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value for value in written)),
            tuple(order),
            picker(call.compiled.inputs(order)),  # type: ignore[arg-type]
            tuple((name, index[name.rpartition(".")[0]]) for name in call.conditioning),
            index.get(timestep) if timestep is not None else None,
            surroundings(),
        )

    def match(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The arguments as written, if the call has this pattern."""
        if len(args) != self.positional or tuple(kwargs) != self.named or surroundings() != self.surroundings:
            return None
        written = (*args, *kwargs.values()) if args else tuple(kwargs.values())
        for index, kind in self.kinds:
            value = written[index]
            if isinstance(value, Tensor):
                if type(kind) is not tuple or value.requires_grad:
                    return None
                shape, dtype, device = kind
                if value.shape != shape or value.dtype is not dtype or value.device != device:
                    return None
            elif type(value) is not type(kind) or value != kind:
                return None
        return written

    def call(self, compiled: ProgramSet, written: Sequence[Any]) -> Call:
        """The call of these arguments."""
        conditioning = {name: written[index] for name, index in self.conditioning}
        when = None if self.timestep is None else written[self.timestep]
        return Call(self.key, compiled, self.inputs_of(written), conditioning, when)


def on_host(value: Any) -> bool:
    """Whether a timestep can be looked at without waiting for a device."""
    return not isinstance(value, Tensor) or value.is_cpu  # the text of `device.type` takes 15 us between programs


def moment_of(timestep: Any) -> tuple[Any, tuple[float, float] | None]:
    """A timestep as a number, and its ends where the host has looked at them; the tensor itself where it lies on a device."""
    if not isinstance(timestep, Tensor):
        return timestep_value(timestep), None
    if not timestep.is_cpu or not timestep.numel():
        return timestep, None
    ends = timestep_ends(timestep)
    return ends[1], ends


def timestep_ends(timestep: Tensor) -> tuple[float, float]:
    """Smallest and largest timestep of a batch as host numbers; one transfer where it lies on a device."""
    if timestep.numel() > FEW:
        low, high = torch.stack(torch.aminmax(timestep.detach())).tolist()
        return float(low), float(high)
    values = timestep.tolist() if timestep.dim() == 1 else timestep.flatten().tolist()
    return float(min(values)), float(max(values))


def different_ends(timestep: Tensor) -> tuple[float, float] | None:
    """Smallest and largest timestep of a batch on the host; None where all are equal, or only a device knows."""
    if timestep.numel() < 2 or not on_host(timestep):
        return None
    low, high = timestep_ends(timestep)
    return None if low == high else (low, high)
