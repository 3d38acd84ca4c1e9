"""Streams: calls with different conditioning that take turns in one loop, told apart without being told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

MAX_STREAMS = 4
"""More kinds of conditioning than this within one generation are not told apart: the one used longest ago makes room."""


class ConditioningChangesWarning(UserWarning):
    """The conditioning was another in so many calls of one generation that nothing can be cached."""


def group_name(place: int) -> str:
    """The context of a stream: "default", "default/2", ..."""
    return "default" if place == 0 else f"default/{place + 1}"


def conditioning(arguments: Mapping[str, Any], latent: str, timestep: str | None) -> dict[str, Tensor]:
    """Return the tensors that say what is drawn: those that stay the same from step to step of one stream, by argument and position.

    Left out: the latent, the timestep and other vectors of floats (sigmas, guidance), and what a control network makes anew for each step.
    """
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if name in (latent, timestep) or "control" in name or "timestep" in name:
            continue
        for i, leaf in enumerate(pytree.tree_leaves(value)):
            if isinstance(leaf, Tensor) and (leaf.dim() > 1 or not leaf.is_floating_point()):
                found[f"{name}.{i}"] = leaf
    return found


@dataclass
class Seen:
    """A tensor as it was: the object and the number of times it had been written."""

    tensor: Tensor
    version: int | None

    @classmethod
    def now(cls, tensor: Tensor) -> Seen:
        return cls(tensor, None if tensor.is_inference() else tensor._version)

    def equals(self, other: Tensor) -> bool:
        """Whether `other` has the same values; True at once for the same, unwritten object."""
        if Seen.now(self.tensor).version != self.version:
            return False
        if self.tensor is other:
            return True
        kind = (other.shape, other.dtype, other.device)
        return (self.tensor.shape, self.tensor.dtype, self.tensor.device) == kind and torch.equal(self.tensor, other)


@dataclass
class ConditioningGroups:
    """Numbers the streams of one loop: a conditional and an unconditional pass with separate calls are streams 0 and 1.

    Two calls belong to one stream when their conditioning has the same values; nothing is inferred from the order or the
    number of calls, which are other as soon as guidance is off for a step.
    """

    seen: list[dict[str, Seen]] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    """When each stream was last called, as a number of calls."""
    calls: int = 0
    evicted: int = 0
    warned: bool = False

    def find(self, given: Mapping[str, Tensor], over: Callable[[int], bool]) -> int:
        """Return the stream of a call. `over(i)`: whether the generation of stream i has ended, so that its place is free."""
        self.calls += 1
        place = next((i for i, seen in enumerate(self.seen) if self._matches(seen, given)), None)
        if place is None:
            place = self._place(over)
        self.seen[place] = {name: Seen.now(tensor) for name, tensor in given.items()}
        self.used[place] = self.calls
        return place

    @staticmethod
    def _matches(seen: dict[str, Seen], given: Mapping[str, Tensor]) -> bool:
        return seen.keys() == given.keys() and all(seen[name].equals(tensor) for name, tensor in given.items())

    def _place(self, over: Callable[[int], bool]) -> int:
        for i in range(len(self.seen)):
            if over(i):
                self.evicted = 0
                return i
        if len(self.seen) < MAX_STREAMS:
            self.seen.append({})
            self.used.append(0)
            return len(self.seen) - 1
        self.evicted += 1
        if self.evicted == MAX_STREAMS and not self.warned:
            self.warned = True
            warnings.warn(
                f"the conditioning took more than {2 * MAX_STREAMS} values within one generation, so nothing can be skipped; "
                "wrap the calls that belong together in model.cache_context(name)",
                ConditioningChangesWarning,
                stacklevel=2,
            )
        return min(range(len(self.used)), key=self.used.__getitem__)

    def forget(self) -> None:
        """Drop the references to conditioning tensors; the places stay."""
        self.seen = [{} for _ in self.seen]
