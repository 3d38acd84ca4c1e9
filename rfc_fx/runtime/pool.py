"""State pool: contexts of ended generations, kept by program set and used again at the same addresses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator

from rfc_fx.ir.program import ProgramSet
from rfc_fx.runtime.calls import Call, Key
from rfc_fx.runtime.context import Context, new_context

MAX_FREE = 8
"""Contexts that are kept for each program set while no generation uses them; of more, the one used longest ago is freed."""


class StatePool:
    """Owns the contexts that no generation owns. `make` allocates the state of a program set."""

    def __init__(self, make: Callable[[ProgramSet], Context] = new_context) -> None:
        self._make = make
        self._free: dict[Key, dict[int, tuple[str, Context]]] = {}
        """By program set and identity: (lane it was last used as, context), in the order of use."""
        self._lock = threading.RLock()  # a generation may be ended by the garbage collector, in any thread and at any line
        self._dropped: set[Key] = set()

    def __iter__(self) -> Iterator[Context]:
        with self._lock:
            return iter([context for free in self._free.values() for _, context in free.values()])

    def take(self, call: Call, lane: str) -> Context:
        """A context for the programs of a call, with nothing in it: one that was used as this lane if there is one."""
        with self._lock:
            free = self._free.get(call.key)
            if free:
                chosen = next((key for key, (name, _) in free.items() if name == lane), next(iter(free)))
                return free.pop(chosen)[1]
        return self._make(call.compiled)

    def give(self, key: Key, lane: str, context: Context) -> None:
        """Take a context back: what it holds is used by nobody any more."""
        context.clear()
        with self._lock:
            if key in self._dropped:
                return
            free = self._free.setdefault(key, {})
            free[id(context)] = lane, context
            while len(free) > MAX_FREE:
                free.pop(next(iter(free)))

    def drop(self, keys: Collection[Key]) -> None:
        """Free what belongs to these program sets, now and when it is given back."""
        with self._lock:
            self._dropped.update(keys)
            for key in keys:
                self._free.pop(key, None)
