"""Sets of programs, one for each call signature and for each set of values that a forward's Python read; bounded in number."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import Any

from rfc.streams import Seen
from rfc_fx.program import Compiled

MAX_SIGNATURES = 8
"""Programs are kept for this many call signatures; the one used longest ago goes first, with its state."""

Key = int
"""A number of its own for every set: cheap to look up in every step."""


class ProgramSets:
    """What was compiled, by signature; the one used last is the last."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[Key, Compiled] = OrderedDict()
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

    def get(self, key: Key) -> Compiled:
        """Return a set."""
        return self._compiled[key]

    def add(self, shape: Any, leaves: list[Any], compiled: Compiled) -> Key:
        """Keep a new set."""
        key = next(self._numbers)
        self._compiled[key], self._shapes[key] = compiled, shape
        self._fixed[key] = {position: Seen.now(leaves[position]) for position in compiled.captured.decided}
        return key

    def use(self, key: Key) -> Compiled:
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
    def latest(self) -> Compiled | None:
        """The set used last."""
        return next(reversed(self._compiled.values()), None)
