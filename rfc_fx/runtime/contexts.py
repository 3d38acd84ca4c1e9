"""Contexts of a model: by name where the caller gives one (per thread), by conditioning where not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rfc.arguments import timestep_value
from rfc.bookkeeping import Book
from rfc.conditioning import ConditioningGroups, group_name
from rfc_fx.ir.program import ProgramSet
from rfc_fx.runtime.calls import Call, Key
from rfc_fx.runtime.context import Context, new_context


class _Here(threading.local):
    """What calls of this thread belong to."""

    name: str | None = None
    sample: str = ""


class Contexts:
    """The contexts of one model. `make` allocates the state of a program set."""

    def __init__(self, make: Callable[[ProgramSet], Context] = new_context) -> None:
        self._make = make
        self._contexts: dict[tuple[str, Key], Context] = {}
        self._groups: dict[tuple[Key, str], ConditioningGroups] = {}
        self._here = _Here()
        self.latest: Context | None = None
        """The one that was used last."""
        self.sign = 1
        """The direction of the sampler's timestep, as far as known: 1 falls, -1 rises (`rfc.bookkeeping.arrive`)."""

    def __len__(self) -> int:
        return len(self._contexts)

    def __iter__(self) -> Iterator[Context]:
        return iter(self._contexts.values())

    def of(self, call: Call) -> Context:
        """The context of a call, which is allocated at its first."""
        here = self._here
        name = (here.name if here.name is not None else self._group(call)) + here.sample
        context = self._contexts.get((name, call.key))
        if context is None:
            context = self._contexts[name, call.key] = self._make(call.compiled)
        self.latest = context
        return context

    def _group(self, call: Call) -> str:
        """Name of a call outside `named`: conditional and unconditional calls get a context each."""
        sample = self._here.sample

        def is_over(index: int) -> bool:
            context = self._contexts.get((group_name(index) + sample, call.key))
            return context is None or context.is_over(timestep_value(call.timestep), self.sign)

        groups = self._groups.get((call.key, sample))
        if groups is None:
            groups = self._groups[call.key, sample] = ConditioningGroups()
        return group_name(groups.find(call.conditioning, is_over))

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Calls inside use the context of this name; per thread, may be nested."""
        before, self._here.name = self._here.name, name
        try:
            yield
        finally:
            self._here.name = before

    def turn_to_sample(self, index: int) -> None:
        """Calls of this thread from here on are those of one sample of a batch."""
        self._here.sample = f"[{index}]"

    def reset(self) -> None:
        """End the generation of every context."""
        for context in self:
            context.end()
        for groups in self._groups.values():
            groups.forget()

    def drop(self, keys: Collection[Key]) -> None:
        """Drop the state that belongs to these program sets."""
        gone = [context for (_, key), context in self._contexts.items() if key in keys]
        self._contexts = {name: context for name, context in self._contexts.items() if name[1] not in keys}
        self._groups = {name: groups for name, groups in self._groups.items() if name[0] not in keys}
        if self.latest in gone:
            self.latest = None

    def records(self) -> dict[str, Book]:
        """What each context's generation did, by its name; "cond (2)" is the second set of programs that ran as "cond"."""
        books: dict[str, Book] = {}
        times = Counter[str]()
        for (name, _), context in self._contexts.items():
            times[name] += 1
            books[name if times[name] == 1 else f"{name} ({times[name]})"] = context.record()
        return books
