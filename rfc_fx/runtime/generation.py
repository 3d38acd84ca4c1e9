"""Generation: one run of a sampler loop; it owns its lanes, each with a context, and what is known of the sampler."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from rfc.arguments import timestep_value
from rfc.bookkeeping import Book, Rule, continues
from rfc.conditioning import MAX_GROUPS, ConditioningGroups, group_name
from rfc.method import Method
from rfc_fx.errors import RFCError
from rfc_fx.runtime import calls
from rfc_fx.runtime.calls import Call, Key
from rfc_fx.runtime.context import Context, latent_index
from rfc_fx.runtime.lane_records import Lane, LaneRecords
from rfc_fx.runtime.moments import Elsewhere, Follows, Moments
from rfc_fx.runtime.pool import StatePool
from rfc_fx.runtime.position import Position
from rfc_fx.runtime.sampler import Known
from rfc_fx.runtime.timestep_check import TimestepCheck
from rfc_fx.runtime.timetable import Timetable

log = logging.getLogger("rfc_fx")


class Generation(LaneRecords):
    """Owns the lanes of one run of a sampler loop; `with model.generation() as g:` opens one, a pipeline's call another.

    A lane is what shares one context: one program set, one name ("cond", "uncond", or a conditioning where nobody gives a name), one
    number within the step (windows, tiles: the second call of a name at a timestep is another lane than the first), and one sample where
    decisions are per sample. Nobody else writes its state; when the generation ends, its contexts go back to the model's pool.

    What one thread or task calls outside of any block belongs to a generation of its own, `is_opened=False`: there a timestep that moves
    back begins a new run, and so does a latent that no sampler makes of the latents and outputs before (`succession`).
    """

    def __init__(
        self, model: str, pool: StatePool, known: Known, call: Callable[..., Any], elsewhere: Elsewhere, *, is_opened: bool
    ) -> None:
        super().__init__()
        self.model, self.is_opened = model, is_opened
        self.timetable: Timetable | None = None
        self.index: int | None = None  # of the coming call, counted from the generation's first; None where the timesteps are not known
        self.timestep: float | None = None  # of that call as the model sees it, by the timetable
        self.sign = 1  # the direction of the sampler's timestep, as far as known: 1 falls, -1 rises (`rfc.bookkeeping.arrive`)
        self.has_ended = False
        self.rules: tuple[Method | None, dict[str, Rule]] = None, {}  # for its own steps, by pass, and the method that they were made of
        self.rows: dict[str | None, int] = {}  # samples of the calls of each name, where each has decisions of its own
        self._pool, self._known, self._call, self._elsewhere = pool, known, call, elsewhere
        self._is_read = False  # whether the timetable has been looked for
        self.timestep_check = TimestepCheck(model)
        self._groups: dict[tuple[Key, str], ConditioningGroups] = {}
        self.moments = Moments(self._elsewhere)
        self._evicted: dict[tuple[str, tuple[int, ...]], Book] = {}  # by lane and latent: books of programs that have made room
        self._lock = threading.Lock()  # held while a call's place is found, never while a step runs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model in this generation, from wherever; RFCError where it has ended."""
        if self.has_ended:
            raise RFCError(
                f"{self.model}: this generation has ended; open another with model.generation() for calls after its block, "
                "and wait for the tasks that were started inside before leaving it"
            )
        return self._call(self, args, kwargs)

    # ---- lanes -------------------------------------------------------------------------------------------------------

    def context(
        self, call: Call, name: str | None, sample: str = "", *, is_told: bool = True, is_noted: bool = True, again: Context | None = None
    ) -> Context:
        """The context of a call; it is taken from the pool at its lane's first. `again`: the one it had, where its step begins anew.

        `is_told`: whether it is known who the sample is; otherwise it is the one in that row of the batch, as long as its latent says so.
        `is_noted`: whether `note` will hear what comes of the call; else its latent is not held against those before.

        Calls of several threads find theirs one after the other: what is known of each stands in `Context.at`.
        """
        with self._lock:
            return self._found(call, name, sample, is_told, is_noted, again)

    def _found(self, call: Call, name: str | None, sample: str, is_told: bool, is_noted: bool, again: Context | None) -> Context:
        follows = Follows()
        if again is not None:
            at, lane = again.at, (again.at.lane, call.key)
        else:
            if not (self.is_opened and self._is_read and self.timetable is None):
                self._arrive(call.timestep)
            is_certain = not is_noted or ((is_told or self._known.keeps_rows) and (self.is_opened or self.index is not None))
            row = None if is_certain else "" if is_told else f"{name or ''}{sample}"
            lane, at, follows = self._lane((self._group(call, sample) if name is None else name) + sample, call, row)
        context = self._lanes.get(lane)
        if context is None:
            if not self._lanes:
                self._ended.clear()
            shape = tuple(call.inputs[latent_index(call.compiled)].shape)
            evicted = self._evicted.pop((lane[0], shape), None)
            if again is None and evicted is not None and continues(evicted, self._value(call), self.sign):
                at = at._replace(is_evicted=True)
            try:
                context = self._lanes[lane] = self._pool.take(call, lane[0])
            except BaseException:
                self.moments.give_back(lane)
                raise
            context.shape = shape
            context.name = self._labelled(lane[0])
        if follows.is_foreign and not context.has_ended:
            at = at._replace(in_doubt=not follows.is_unmoved and not context.is_over(self._value(call), self.sign))
            context.complete()
            context.before = None
            if follows.is_unmoved:  # a step each, of one noise: each begins with empty state
                context.end()
        if at.in_doubt:
            context.end()
        context.at = at._replace(is_late=at.is_late and not context.is_over(self._value(call), self.sign))
        self._latest = lane
        return context

    def failed(self, context: Context) -> None:
        """The call of a context has failed: tried again, it is the same call of its step, not the next window's."""
        context.end()
        with self._lock:
            for lane in [lane for lane, each in self._lanes.items() if each is context]:
                self.moments.give_back(lane)

    def _arrive(self, timestep: Any) -> None:
        """Find the call in the timetable, which is looked for at the first one."""
        table, before = self.timetable, self.index
        if table is not None and not table.is_current:  # the scheduler was set anew: another run
            self.restart()
            table = None
        if table is None and not self._is_read:
            self._is_read, table, before = True, self._known.timetable(), None
        self.timetable, self.index, self.timestep = table, None, None
        if table is None and timestep is not None and not self.is_opened:
            low, high = calls.timestep_ends(timestep) if isinstance(timestep, Tensor) else (timestep, timestep)
            self.timestep = high if low == high else None
        if table is None or timestep is None:
            return
        self.index = table.arrive(timestep)
        if self.index is None:
            log.info("%s: a call's timestep is none of the scheduler's; from here on it is not used", self.model)
            self.timetable = None
            return
        if before is not None and self.index < before and not self.is_opened:
            self.restart()  # the same list once more
            self._arrive(timestep)
            return
        self.timestep, self.sign = table.timestep, table.sign

    def _lane(self, name: str, call: Call, row: str | None) -> tuple[Lane, Position, Follows]:
        """The lane of a call, by how often its name was called at this moment, and where it stands there; `row`: as `Moments.follows` has
        it, None where the latent is not held against those before."""
        lane, at, follows = (name, call.key), Position(name, self.index, self.timestep, is_followed=row is not None), Follows()
        if call.timestep is None and row is None:
            return lane, at, follows
        is_known = self.index is not None or call.timestep is None
        moment, ends = (self.index, None) if is_known else calls.moment_of(call.timestep)
        if self.is_opened and call.timestep is not None:
            lane, is_other = self.moments.numbered(lane, moment)
            at = at._replace(is_recounted=is_other)
        at = at._replace(lane=lane[0], ends=ends, is_late=not is_known and self.moments.is_late(lane, moment, self.sign))
        if row is not None:
            follows = self.moments.follows(lane, call, self._value(call), row, is_opened=self.is_opened, sign=self.sign)
            return lane, at._replace(in_doubt=follows.is_displaced or at.is_recounted, is_repeated=follows.is_repeated), follows
        doubt = not self.is_opened and self.moments.is_doubtful(lane, call, moment, self.sign, self._known.repeats(moment))
        return lane, at._replace(in_doubt=doubt or at.is_recounted), follows

    def _value(self, call: Call) -> float | None:
        """The timestep of a call as a number."""
        return timestep_value(call.timestep) if self.timestep is None else self.timestep

    def note(self, at: Position, outputs: Sequence[Any]) -> None:
        """Take in what a call has given, where that tells which calls follow it; RFCError where known timesteps were not those."""
        if self.timetable is not None and at.step == self.timetable.remaining - 1:
            self.timestep_check.verify()
        if at.is_followed and not at.is_repeated:
            for output in [each for each in outputs if isinstance(each, Tensor) and each.is_floating_point()][:1]:
                self.moments.note(output)

    def beside(self, arguments: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take in what the model gave for a call that is part of no lane, made with the latent of the latest call."""
        if not self.is_opened and self.moments.is_at(arguments):
            self.note(Position(step=self.index, is_followed=self.index is None), outputs)

    def _group(self, call: Call, sample: str) -> str:
        """Name of a call that has none: conditional and unconditional calls get a lane each."""
        if (groups := self._groups.get((call.key, sample))) is None:
            groups = self._groups[call.key, sample] = ConditioningGroups(sys.maxsize if self.is_opened else MAX_GROUPS)
        if (index := groups.match(call.conditioning)) is None:
            keeps = self.is_opened and len(groups.seen) < MAX_GROUPS  # others may be at a lower noise meanwhile
            index = groups.add(call.conditioning, lambda index: not keeps and self._is_free(index, sample, call))
        name = group_name(index)
        if self._known.passes is not None and name + sample not in self._labels and (label := self._known.passes()) is not None:
            self._label(name + sample, sample, label)
        if groups.made_room and (context := self._lanes.get((name + sample, call.key))) is not None:
            context.end()  # what another conditioning left is no beginning of this one
        return name

    def _is_free(self, index: int, sample: str, call: Call) -> bool:
        """Whether the lane of a group of conditionings is not in use, or its run is over."""
        context = self._lanes.get((group_name(index) + sample, call.key))
        return context is None or context.is_over(self._value(call), self.sign)

    def called(self, at: Position, dtype: torch.dtype) -> Tensor | None:
        """The timesteps that the model is called with, as far as they are certain; None where they are not known."""
        if (table := self.timetable) is None or at.step is None:
            return self._known.timesteps
        return table.called(dtype) if table.is_certain else None

    # ---- its end -----------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Begin another run: nothing is known of it, and all contexts are given back."""
        self.end()
        self.sign = 1
        self.timetable, self.index, self.timestep, self._is_read, self.rows, self._evicted = None, None, None, False, {}, {}

    def end(self) -> None:
        """Give all contexts back; records stay readable until other lanes take their place."""
        self.rules = None, {}
        self.timestep_check.end()
        if not self._lanes:
            return
        self._ended = self.books()
        self._latest_book = self.latest_book
        for (name, key), context in self._lanes.items():
            self._pool.give(key, name, context)
        self._lanes, self.moments, self._groups = {}, Moments(self._elsewhere), {}

    def drop(self, keys: Collection[Key], *, are_evicted: bool = False) -> None:
        """Forget the lanes of program sets that are gone; `are_evicted`: for want of room, so that a run may come back to them."""
        with self._lock:
            if are_evicted:
                gone = [context for lane, context in self._lanes.items() if lane[1] in keys and not context.has_ended]
                self._evicted.update(((context.at.lane, context.shape), context.record()) for context in gone)
            self._lanes = {lane: context for lane, context in self._lanes.items() if lane[1] not in keys}
            self.moments.drop(keys)
            self._groups = {group: groups for group, groups in self._groups.items() if group[0] not in keys}
