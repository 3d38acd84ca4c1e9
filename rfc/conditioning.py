"""Groups calls by conditioning, so that conditional and unconditional passes get separate caches without `cache_context`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

MAX_GROUPS = 4
"""Largest number of conditionings that are told apart within one generation; the one used longest ago makes room."""


class ConditioningChangesWarning(UserWarning):
    """The conditioning was another in so many calls of one generation that nothing can be cached."""


def is_uncond(name: str) -> bool:
    """Whether a context has guidance's calls without a condition: "uncond", or one of several ("uncond/2", "uncond #2", "uncond[3]")."""
    return re.split(r"/| #|\[", name, maxsplit=1)[0] == "uncond"


def group_name(index: int) -> str:
    """The context of a group: "default", "default/2", ..."""
    return NAMES[index] if index < MAX_GROUPS else f"default/{index + 1}"


NAMES = ("default", *(f"default/{number}" for number in range(2, MAX_GROUPS + 1)))


def conditioning(arguments: Mapping[str, Any], latent: str, timestep: str | None) -> dict[str, Tensor]:
    """Return the tensors that say what is drawn: those that stay the same from step to step of one group, by argument and position.

    Left out: the latent, the timestep and other vectors of floats (sigmas, guidance), and what a control network makes anew for each step.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if name in (latent, timestep) or "control" in name or "timestep" in name:
            continue
        for i, leaf in enumerate(pytree.tree_leaves(value)):
            if isinstance(leaf, Tensor) and (leaf.dim() > 1 or not leaf.is_floating_point()):
                tensors[f"{name}.{i}"] = leaf
    return tensors


def version(tensor: Tensor) -> int | None:
    """The number of times a tensor was written; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version


@dataclass
class Seen:
    """A tensor as it was: the object with the number of times it had been written, and its values, which the caller may overwrite."""

    tensor: Tensor | None
    """None where nobody counts (inference tensors): values alone tell."""
    version: int | None
    values: Tensor
    """A copy; the tensor itself where no copy was asked for."""

    @classmethod
    def now(cls, tensor: Tensor, *, copied: bool = True) -> Seen:
        """`copied=False`: a tensor that is overwritten is none that was seen."""
        count = version(tensor)
        return cls(None if count is None else tensor, count, tensor.clone() if copied or count is None else tensor)

    def equals(self, other: Tensor) -> bool:
        """Whether `other` has the values that were seen, True at once for the same, unwritten object; if so, `other` is what was seen."""
        if self.tensor is not None:
            is_written = self.tensor._version != self.version
            if self.tensor is other and not is_written:
                return True
            if self.values is self.tensor and is_written:
                return False
        values = self.values
        if (values.shape, values.dtype, values.device) != (other.shape, other.dtype, other.device) or not torch.equal(values, other):
            return False
        if (count := version(other)) is not None:
            if values is self.tensor:
                self.values = other
            self.tensor, self.version = other, count
        return True


def all_equal(seen: Mapping[str, Seen], tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the same names have the values that were seen."""
    if len(seen) != len(tensors):
        return False
    for name, tensor in tensors.items():
        before = seen.get(name)
        if before is None:
            return False
        if before.tensor is tensor and tensor._version == before.version:  # the first thing that `equals` looks at
            continue
        if not before.equals(tensor):
            return False
    return True


@dataclass
class ConditioningGroups:
    """Numbers the groups of one loop: a conditional and an unconditional pass with separate calls are groups 0 and 1.

    Two calls belong to one group when their conditioning has the same values; nothing is inferred from the order or the
    number of calls, which are other as soon as guidance is off for a step.
    """

    limit: int = MAX_GROUPS
    """Most groups that are told apart; more make room."""
    seen: list[dict[str, Seen]] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    """When each group was last called, as a number of calls."""
    calls: int = 0
    evicted: int = 0
    warned: bool = False
    made_room: bool = False
    """Whether the latest `find` gave the number of a generation under way to another conditioning."""

    def find(self, tensors: Mapping[str, Tensor], is_over: Callable[[int], bool]) -> int:
        """Return the group of a call. `is_over(i)`: whether the generation of group i has ended, so that its number is free."""
        index = self.match(tensors)
        return self.add(tensors, is_over) if index is None else index

    def add(self, tensors: Mapping[str, Tensor], is_over: Callable[[int], bool]) -> int:
        """Return the group of a call whose conditioning is new."""
        index = self._free(is_over)
        self.seen[index] = {name: Seen.now(tensor) for name, tensor in tensors.items()}
        self.used[index] = self.calls
        return index

    def match(self, tensors: Mapping[str, Tensor]) -> int | None:
        """Return the group of a call, None where its conditioning is new."""
        self.calls += 1
        self.made_room = False
        for index, seen in enumerate(self.seen):
            if all_equal(seen, tensors):
                self.used[index] = self.calls
                return index
        return None

    def _free(self, is_over: Callable[[int], bool]) -> int:
        for index in range(len(self.seen)):
            if is_over(index):
                self.evicted = 0
                return index
        if len(self.seen) < self.limit:
            self.seen.append({})
            self.used.append(0)
            return len(self.seen) - 1
        self.evicted += 1
        self.made_room = True
        if self.evicted == MAX_GROUPS and not self.warned:
            self.warned = True
            warnings.warn(
                f"the conditioning took more than {2 * MAX_GROUPS} values within one generation, so nothing can be skipped; "
                "wrap the calls that belong together in model.cache_context(name)",
                ConditioningChangesWarning,
                stacklevel=2,
            )
        return min(range(len(self.used)), key=self.used.__getitem__)

    def forget(self) -> None:
        """Drop the references to conditioning tensors; the numbers stay."""
        self.seen = [{} for _ in self.seen]
