"""Moments: what a lane was last called with, and whether another call there can be told apart from it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rfc.conditioning import Seen
from rfc_fx.runtime.calls import Call, Key
from rfc_fx.runtime.context import latent_index
from rfc_fx.runtime.lane_records import Lane
from rfc_fx.runtime.succession import Rows, Run, Succession, is_multiple


class Moment(NamedTuple):
    """What a name was last called with."""

    at: Any
    """The index in the timetable, else the timestep: as a number, or the tensor where it lies on a device."""
    latent: Seen
    """What was moved."""


class Numbered(NamedTuple):
    """How often a name was called at its latest moment."""

    at: Any
    times: int
    usual: int = 0
    """At the moment before; 0 at the first."""
    is_other: bool = False
    """Whether the number has changed, so that lanes may have been others'."""


LEAP = 1.5
"""Times the largest step of a lane that its next one is for a leap; a step that was left out makes two of one."""


class Follows(NamedTuple):
    """How the latent of a call stands to what its lane was called with before."""

    is_foreign: bool = False
    """It is no next step of the lane's run."""
    is_unmoved: bool = False
    """It is one of its lane's run once more, as it was or times a number."""
    is_displaced: bool = False
    """It is the first of its lane and follows from no run of its sample, at a noise that one might be at."""
    is_repeated: bool = False
    """The call was made before: the same lane, latent and timestep."""


def is_same(then: Any, now: Any) -> bool:
    """Whether two moments are the same step."""
    return then is now if isinstance(now, Tensor) else not isinstance(then, Tensor) and bool(then == now)


class Moments:
    """The latest moments of a generation's lanes. `elsewhere`: those of other threads and tasks, one of whose calls might come here."""

    def __init__(self, elsewhere: Elsewhere = tuple) -> None:
        self._elsewhere = elsewhere
        self._lock = threading.Lock()  # of the successions, which calls of other threads look at
        self._latest: dict[Lane, Moment] = {}
        self._numbered: dict[Lane, Numbered] = {}
        """By name, where somebody has opened the generation."""
        self._doubtful: dict[Lane, Any] = {}
        """Lanes that had two calls at one timestep with other latents, until a timestep above."""
        self._paces: dict[Lane, tuple[float, float, float]] = {}
        """Of each lane the latest two timesteps of its calls, and its largest step so far."""
        self._latents: dict[Key, int] = {}
        """Where the latent is among the inputs."""
        self._successions: dict[str, Succession] = {}
        """By row of a batch, where each has decisions of its own."""
        self._succession = Succession()
        """That of the latest call."""
        self._following: set[str] = set()
        """Rows whose latents have followed from those before."""
        self._loose: set[str] = set()
        """Rows whose latents did not, from the beginning of a generation that somebody has opened: a sampler that adds noise."""
        self._runs: dict[Lane, Run] = {}
        """The run that each lane is in."""

    def numbered(self, lane: Lane, at: Any) -> tuple[Lane, bool]:
        """The lane of a call where somebody has opened the generation: the second call of a name at a timestep has a lane of its own.

        And whether there are more or fewer calls of the name than at the timestep before, of which fewer are seen at the next one. Two in
        the place of one are no more: samplers of second order have them.
        """
        before = self._numbered.get(lane)
        if before is None:
            now = Numbered(at, 1)
        elif is_same(before.at, at):
            count = before.times + 1
            now = before._replace(times=count, is_other=before.is_other or 1 < before.usual < count)
        else:
            now = Numbered(at, 1, before.times, before.usual > 1 and before.usual != before.times)
        self._numbered[lane] = now
        return (lane if now.times == 1 else (f"{lane[0]} #{now.times}", lane[1])), now.is_other

    def give_back(self, lane: Lane) -> None:
        """The latest call of a numbered lane has failed: the next one of its name has its number."""
        name, _, number = lane[0].rpartition(" #") if lane not in self._numbered else (lane[0], "", "1")
        latest = self._numbered.get((name, lane[1]))
        if latest is not None and str(latest.times) == number:
            self._numbered[name, lane[1]] = latest._replace(times=latest.times - 1)

    def is_late(self, lane: Lane, at: Any, sign: int) -> bool:
        """Whether steps were made without the lane: its timestep leaps, and others were called at what lies between.

        Not told where timesteps lie on a device, and before a lane's third call at a timestep of its own. `sign`: which way the timestep
        goes; where it moves back, another run begins.
        """
        if at is None or isinstance(at, Tensor):
            return False
        before, earlier, largest = self._paces.get(lane, (at, at, 0.0))
        if sign * at > sign * before:
            self._paces[lane] = at, at, 0.0
            return False
        if step := abs(at - before):
            earlier = before
        self._paces[lane] = at, earlier, max(step, largest)
        low, high = sorted((before, at))
        return 0 < LEAP * largest < step and any(low < other < high for pace in self._paces.values() for other in pace[:2])

    def is_doubtful(self, lane: Lane, call: Call, at: Any, sign: int, repeats: bool) -> bool:
        """Whether a call may belong to another run than the one before: twice at one timestep, which the sampler is not known to do.

        `sign`: which way the timestep goes; the doubt ends where it moves back.
        """
        latent, before = self._latent(call), self._latest.get(lane)
        self._latest[lane] = Moment(at, Seen.now(latent, copied=False))
        if before is not None and is_same(before.at, at) and not before.latent.equals(latent) and not repeats:
            self._doubtful[lane] = at
        elif lane in self._doubtful and not isinstance(at, Tensor) and sign * at > sign * self._doubtful[lane]:
            del self._doubtful[lane]
        return lane in self._doubtful

    def follows(self, lane: Lane, call: Call, at: Any, row: str, *, is_opened: bool, sign: int) -> Follows:
        """Hold the latent of a call against those before: a next step of the lane's run has one that follows from that run.

        `row`: of a batch whose samples decide for themselves and whom nobody names; it has runs of its own. Where somebody has opened the
        generation, what once did not follow may be as it likes. `sign`: which way the timestep goes.
        """

        def is_elsewhere(rows: Rows, share: float) -> bool:
            return any(other.explains(row, rows, share) for other in self._elsewhere() if other is not self)

        before, self._succession = self._runs.get(lane), self._successions.setdefault(row, Succession())
        last, latent = self._succession.at, self._latent(call)
        with self._lock:
            run = self._runs[lane] = self._succession.find(latent, at, before, is_elsewhere)
        is_unmoved = before is not None and run is not before and is_multiple(run[-1].rows, before)
        is_new = len(run) == 1 and not run[-1].lanes
        is_repeated = lane in run[-1].lanes
        run[-1].lanes.add(lane)
        if is_opened and is_new and last is not None and row not in self._following:
            self._loose.add(row)
        elif not is_new and last != at:
            self._following.add(row)
        may_follow = last is not None and at is not None and sign * at <= sign * last
        is_displaced = bool(row) and before is None and is_new and may_follow and row not in self._loose
        return Follows(before is not None and run is not before and row not in self._loose, is_unmoved, is_displaced, is_repeated)

    def explains(self, row: str, rows: Rows, share: float) -> bool:
        """Whether a latent follows from what was drawn here; no while a call here finds its place: two that wait would wait for ever."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return row in self._successions and self._successions[row].explains(rows, share)
        finally:
            self._lock.release()

    def is_at(self, arguments: Sequence[Any]) -> bool:
        """Whether the latent of the latest call is among the arguments."""
        return any(self._succession.is_at(argument) for argument in arguments if isinstance(argument, Tensor))

    def note(self, output: Tensor) -> None:
        """Take in what the model made of the latent of the call that `follows` was asked about last."""
        with self._lock:
            self._succession.note(output)

    def _latent(self, call: Call) -> Tensor:
        if (index := self._latents.get(call.key)) is None:
            index = self._latents[call.key] = latent_index(call.compiled)
        return call.inputs[index]

    def drop(self, keys: Collection[Key]) -> None:
        """Forget the lanes of program sets that are gone."""
        for lanes in (self._latest, self._numbered, self._doubtful, self._runs, self._paces):
            for lane in [lane for lane in lanes if lane[1] in keys]:
                del lanes[lane]
        for key in keys:
            self._latents.pop(key, None)


Elsewhere = Callable[[], Iterable[Moments]]
"""The moments of other threads and tasks, as they are now."""
