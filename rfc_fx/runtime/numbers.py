"""Numbers: plain numbers of calls that change from call to call, which programs take as inputs once they have been seen to."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from rfc_fx.capture.lifted import Lifted

log = logging.getLogger("rfc_fx")

Shape = tuple[Any, ...]
"""What a set of programs is fixed to (`calls.signature`): the form of the arguments, what is set around the call, then each argument."""

AROUND = 2
"""Entries of a shape before those of the arguments."""


class ChangingNumberWarning(UserWarning):
    """A plain number of a call changes from call to call, and the model's forward reads it, so that every value is captured anew."""


class Numbers:
    """Which arguments of which calls are such numbers."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lifted: list[tuple[Shape, frozenset[int]]] = []
        """Shapes with `NUMBER` in the place of numbers, and where."""
        self._fixed: set[int] = set()
        """Arguments that cannot be lifted."""
        self._has_said = False

    def lift(self, shape: Shape, known: Iterable[Shape]) -> tuple[Shape, dict[int, float]]:
        """The shape of a call without its changing numbers, and these by position among the flat arguments.

        A number has been seen to change where a known shape is the same but for it.
        """
        for masked, positions in self._lifted:
            if _masked(shape, positions) == masked:
                return masked, _numbers(shape, positions)
        for other in known:
            positions = _differing(shape, other)
            if positions and not positions & self._fixed:
                self._lifted.append((masked := _masked(shape, positions), positions))
                return masked, _numbers(shape, positions)
        return shape, {}

    def as_lifted(self, arguments: Mapping[str, Any], numbers: Mapping[int, float]) -> dict[str, Any]:
        """The arguments with these numbers as inputs of the graph."""
        leaves, spec = pytree.tree_flatten(dict(arguments))
        for position, number in numbers.items():
            leaves[position] = Lifted(number)
        lifted: dict[str, Any] = pytree.tree_unflatten(leaves, spec)
        return lifted

    def leave(self, arguments: Mapping[str, Any], positions: Iterable[int], why: Exception) -> None:
        """Keep these as constants of programs from here on, and say so."""
        self._fixed |= {*positions}
        self._lifted = [(masked, own) for masked, own in self._lifted if not own & self._fixed]
        paths = [path for path, _ in pytree.tree_flatten_with_path(dict(arguments))[0]]
        names = ", ".join(f"{paths[i][0].key}{pytree.keystr(paths[i][1:])}" for i in sorted(positions))  # type: ignore[attr-defined]
        log.info("%s: %s is a constant of its programs: %s", self._model, names, why)
        if not self._has_said:
            self._has_said = True
            warnings.warn(
                f"{self._model}: {names} is a number that changes from call to call, and the model's forward reads it where no tensor can "
                "stand, so every value is captured anew and nothing is estimated; keep it the same within a generation, or have the "
                "forward take it as a tensor",
                ChangingNumberWarning,
                stacklevel=4,
            )


def tensors_for(leaves: list[Any], numbers: Mapping[int, float]) -> list[Any]:
    """The flat arguments with these numbers as the tensors that programs read."""
    if not numbers:
        return leaves
    device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), None)
    return [Lifted(numbers[i]).tensor(device) if i in numbers else leaf for i, leaf in enumerate(leaves)]


NUMBER = "a number that changes"


def _masked(shape: Shape, positions: frozenset[int]) -> Shape:
    places = {AROUND + position for position in positions}
    return tuple(NUMBER if i in places and _is_number(part) else part for i, part in enumerate(shape))


def _numbers(shape: Shape, positions: frozenset[int]) -> dict[int, float]:
    return {position: float(shape[AROUND + position]) for position in sorted(positions)}


def _differing(shape: Shape, other: Shape) -> frozenset[int]:
    """Where two shapes differ in numbers, if they differ in nothing else; numbers that were lifted before count as differing."""
    if len(shape) != len(other) or shape[:AROUND] != other[:AROUND]:
        return frozenset()
    found = set()
    for position, (own, its) in enumerate(zip(shape[AROUND:], other[AROUND:], strict=True)):
        if own is its or (type(own) is type(its) and own == its):
            continue
        if not _is_number(own) or not (_is_number(its) or its == NUMBER):
            return frozenset()
        found.add(position)
    return frozenset(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, float)
