"""Generations of a model: the one a call belongs to, because somebody said so, or because one thread or task made it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch.utils._pytree as pytree

from rfc_fx.errors import SignatureError
from rfc_fx.ir.program import ProgramSet
from rfc_fx.runtime.calls import Call
from rfc_fx.runtime.context import Context, new_context
from rfc_fx.runtime.generation import Generation
from rfc_fx.runtime.moments import Moments
from rfc_fx.runtime.pool import StatePool
from rfc_fx.runtime.sampler import Known
from rfc_fx.runtime.warnings import Warned


class _Here(NamedTuple):
    """What calls belong to, as `contextvars` carry it to tasks and to `asyncio.to_thread`."""

    generation: Generation | None = None
    """Said by a block; or that of the thread or task that gave the name."""
    name: str | None = None
    sample: str = ""
    rows: tuple[str, ...] | None = None
    """Names of the samples of a batch, where the caller gives them."""
    is_row: bool = False
    """Whether the sample is one of several in a batch."""
    outer: _Here | None = None
    """What stood here before the block."""
    block: object = None
    """The block that says so."""


_NOWHERE = _Here()


def _open(here: _Here) -> _Here:
    """The innermost place whose generation has not ended."""
    while here.generation is not None and here.generation.has_ended:
        here = here.outer or _NOWHERE
    return here


def caller() -> object:
    """The task that runs here, else the thread."""
    if (loop := asyncio._get_running_loop()) is not None and (task := asyncio.current_task(loop)) is not None:
        return task
    return threading.current_thread()


class Generations:
    """The generations of one model, and the pool of their contexts. `make` allocates the state of a program set."""

    def __init__(self, model: str, make: Callable[[ProgramSet], Context] = new_context) -> None:
        self._model = model
        self.pool = StatePool(make)
        self.known = Known()
        self._here: ContextVar[_Here] = ContextVar("rfc_fx", default=_NOWHERE)
        self._own: weakref.WeakKeyDictionary[object, Generation] = weakref.WeakKeyDictionary()
        """By thread or task."""
        self._live: weakref.WeakSet[Generation] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._recent: weakref.WeakKeyDictionary[object, Generation] = weakref.WeakKeyDictionary()
        """The generation that a thread or task has opened and left, unless it has made calls of its own since."""
        self.warned = Warned(model)
        self.run: Callable[..., Any] | None = None
        """Calls the model with (args, kwargs)."""
        self.ended: Callable[[Generation], object] | None = None
        """Hears of a generation that ends, before its contexts are given back."""

    # ---- where a call belongs ----------------------------------------------------------------------------------------

    def _where(self) -> _Here:
        """What a call that is made here belongs to; blocks that were left in another order than they were entered do not count."""
        return _open(self._here.get())

    def current(self) -> Generation:
        """The generation of a call that is made here."""
        generation = self._where().generation
        return self._own_of(caller()) if generation is None else generation

    def of(self, call: Call, *, is_noted: bool = True, again: Context | None = None) -> tuple[Generation, Context]:
        """The generation of a call, and its context; `again`: the one that it had, where its step begins anew."""
        here = self._here.get()
        generation = here.generation
        if generation is not None and generation.has_ended:
            here = _open(here)
            generation = here.generation
        if generation is None:
            generation = self._own_of(owner := caller())
            if owner in self._recent:
                del self._recent[owner]
        is_told = here.rows is not None or not here.is_row
        context = generation.context(call, here.name, here.sample, is_told=is_told, is_noted=is_noted, again=again)
        if context.at.is_repeated and not generation.is_opened and again is None:
            self.warned.of_repeat()
        self.warned.of_place(context.at, is_told=is_told)
        return generation, context

    def beside(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Take in what the plain model gave for a call that is part of no lane; returns it."""
        self.current().beside(pytree.tree_leaves((args, kwargs)), pytree.tree_leaves(output))
        return output

    def _own_of(self, owner: object) -> Generation:
        own = self._own.get(owner)
        if own is None:
            with self._lock:
                own = self._own[owner] = self._new(is_opened=False)
            weakref.finalize(owner, _end, weakref.ref(own)).atexit = False
        return own

    def _new(self, *, is_opened: bool, known: Known | None = None) -> Generation:
        generation = Generation(
            self._model, self.pool, known or self.known, self._call_in, tuple if is_opened else self._elsewhere, is_opened=is_opened
        )
        self._live.add(generation)
        return generation

    @contextmanager
    def opened(self, known: Known | None = None) -> Iterator[Generation]:
        """Calls inside, of this thread or task and of those it starts, belong to a new generation; may be nested.

        `known`: what is known of its sampler, where that is not what is known of every generation.
        """
        with self._lock:
            generation = self._new(is_opened=True, known=known)
        try:
            with self._standing(_Here(generation)):
                yield generation
        finally:
            if self.ended is not None:
                self.ended(generation)
            generation.end()
            generation.has_ended = True
            self.used(generation)

    @contextmanager
    def _standing(self, here: _Here) -> Iterator[None]:
        """Calls inside, of this thread or task and of those it starts, belong there; blocks may be nested, and left in any order."""
        block, outer = object(), self._where()
        if outer.outer is not None:  # what has ended is not held by those that are open
            outer = outer._replace(outer=_open(outer.outer))
        token = self._here.set(here._replace(outer=outer, block=block))
        try:
            yield
        finally:
            if self._here.get().block is block:
                self._here.reset(token)

    def _call_in(self, generation: Generation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.run is not None
        with self._standing(self._where()._replace(generation=generation)):
            return self.run(*args, **kwargs)

    def named(self, name: str) -> AbstractContextManager[None]:
        """Calls inside have this name."""
        return self._standing(self._where()._replace(generation=self.current(), name=name))

    def named_rows(self, names: tuple[str, ...]) -> AbstractContextManager[None]:
        """The samples of calls inside have these names."""
        return self._standing(self._where()._replace(generation=self.current(), rows=names))

    def samples(self, count: int) -> tuple[str, ...]:
        """The names of the samples of a call made here: those that were given, else their numbers; SignatureError for another count.

        Where nobody gives names and the count is another than before, who is who is not certain: all of them begin anew.
        """
        here = self._where()
        rows = here.rows
        if rows is None:
            generation = self.current()
            if (before := generation.rows.get(here.name, count)) != count:
                self.warned.of_rows(before, count)
                generation.restart()
            generation.rows[here.name] = count
            return tuple(map(str, range(count)))
        if len(rows) != count:
            raise SignatureError(f"{self._model}: samples: {len(rows)} names for a batch of {count}: {', '.join(rows)}; give one for each")
        return rows

    def turn_to_sample(self, name: str, count: int) -> None:
        """Calls of this thread or task from here on are those of one sample of a batch of `count`."""
        self._here.set(self._here.get()._replace(sample=f"[{name}]", is_row=count > 1))

    # ---- what was, and what is held ----------------------------------------------------------------------------------

    def used(self, generation: Generation) -> None:
        """Note that this thread or task has used a generation."""
        with self._lock:
            self._recent[caller()] = generation

    def recent(self) -> Generation:
        """The generation that stands here, else the one that this thread or task used last."""
        here = self._where().generation
        if here is not None:
            return here
        owner = caller()
        used = self._recent.get(owner)
        return self._own_of(owner) if used is None else used

    def _generations(self) -> list[Generation]:
        """Those that there are."""
        with self._lock:
            return list(self._live)

    def _elsewhere(self) -> list[Moments]:
        """Where the threads and tasks are that have opened no generation."""
        return [generation.moments for generation in self._generations() if not generation.is_opened]

    def __iter__(self) -> Iterator[Context]:
        """Every context there is: in use, then in the pool."""
        for generation in self._generations():
            yield from generation
        yield from self.pool

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def in_use(self) -> set[Any]:
        """The program sets of the generations that somebody has opened and not left."""
        return {
            key
            for generation in self._generations()
            if generation.is_opened and not generation.has_ended
            for key in generation.program_sets()
        }

    def drop(self, keys: Collection[Any], *, are_evicted: bool = False) -> None:
        """Drop the state that belongs to these program sets; `are_evicted`: they have made room for others."""
        self.pool.drop(keys)
        for generation in self._generations():
            generation.drop(keys, are_evicted=are_evicted)


def _end(generation: weakref.ref[Generation]) -> None:
    if (own := generation()) is not None:
        own.end()
