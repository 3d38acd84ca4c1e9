"""Front: what stands between HTTP and the replicas: a bounded queue, retries where a replica dies, counts. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rfc_fx.errors import RFCError
from rfc_fx.tools.requests.prompts import ATTEMPTS
from rfc_fx.tools.requests.request import Limits, Request
from rfc_fx.tools.requests.steps import StepTaken
from rfc_fx.tools.serving.api import CALL, Call, answer, parse_call
from rfc_fx.tools.serving.metrics import Metrics

log = logging.getLogger("rfc_fx")

Draw = Callable[[Request, bool], AsyncIterator[Any]]
"""Draws a request: its steps (`StepTaken`) where they are asked for, then its picture or its error."""
Event = tuple[str, dict[str, Any]]
"""Name and data of a server-sent event."""
Say = Callable[[str, dict[str, Any]], None]


class FullError(RFCError):
    """The queue is full; the call may come again later."""

    def __init__(self, seconds: int, waiting: int) -> None:
        super().__init__(f"{waiting} pictures are waited for, and there is no place for more; try again in {seconds} s")
        self.seconds = seconds


class ClosingError(RFCError):
    """The server draws what it has, and takes nothing more."""


class LostError(RFCError):
    """A picture whose replicas died one after the other."""


class Front:
    """Draws calls through `draw`, which fails with one of `lost` where a replica has died: then another one draws, with the same seed.

    `at_once`: pictures that all replicas draw together.
    """

    def __init__(
        self, draw: Draw, *, lost: tuple[type[BaseException], ...], most_waiting: int, at_once: int = 1, limits: Limits = Limits()
    ) -> None:
        self._draw, self._lost, self._most, self._at_once, self._limits = draw, lost, most_waiting, at_once, limits
        self.metrics = Metrics()
        self.is_closing = False

    def parsed(self, body: bytes) -> Call:
        """The call of a body; RequestError for one that cannot be."""
        return parse_call(body, self._limits, most=min(CALL, self._most))

    async def images(self, call: Call) -> dict[str, Any]:
        """The answer with all pictures of a call. FullError where there is no place, LostError where three replicas died.

        Cancelled, the call gives its places back.
        """
        with self._places(len(call.requests)):
            return await self._pictures(call)

    async def events(self, call: Call, every: float = 2.0) -> AsyncIterator[Event]:
        """The same as events: `queued` (again while nothing happens), `progress` for each step, `retried`, at last `done` with the answer.

        A call that finds no place raises before the first event. `every`: seconds between two `queued`.
        """
        with self._places(len(call.requests)):
            said: asyncio.Queue[Event | None] = asyncio.Queue()
            drawing = asyncio.ensure_future(self._pictures(call, lambda name, data: said.put_nowait((name, data))))
            drawing.add_done_callback(lambda _: said.put_nowait(None))
            has_begun = False
            try:
                yield "queued", {"waiting": self.metrics.waiting}
                while True:
                    try:
                        event = await asyncio.wait_for(said.get(), every)
                    except TimeoutError:
                        if not has_begun:
                            yield "queued", {"waiting": self.metrics.waiting}
                        continue
                    if event is None:
                        break
                    has_begun = True
                    yield event
                yield "done", drawing.result()
            finally:
                drawing.cancel()

    async def drained(self) -> None:
        """Take no more calls, and wait until those that are here are answered."""
        self.is_closing = True
        while self.metrics.waiting:
            await asyncio.sleep(0.05)

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        if self.is_closing:
            raise ClosingError("the server is closing; try again later")
        if self.metrics.waiting + count > self._most:
            each = self.metrics.seconds / self.metrics.pictures if self.metrics.pictures else 1.0
            raise FullError(max(1, math.ceil(each * self.metrics.waiting / self._at_once)), self.metrics.waiting)
        self.metrics.waiting += count
        try:
            yield
        finally:
            self.metrics.waiting -= count

    async def _pictures(self, call: Call, say: Say | None = None) -> dict[str, Any]:
        drawing = [asyncio.ensure_future(self._one(request, index, say)) for index, request in enumerate(call.requests)]
        try:
            return answer(call.requests, await asyncio.gather(*drawing))
        finally:
            for each in drawing:
                each.cancel()

    async def _one(self, request: Request, index: int, say: Say | None) -> Any:
        which = {"picture": index, "seed": request.seed}
        error: BaseException | None = None
        for attempt in range(ATTEMPTS):
            if attempt and say is not None:
                say("retried", {**which, "attempt": attempt + 1})
            picture = None
            try:
                async for event in self._draw(request, say is not None):
                    if not isinstance(event, StepTaken):
                        picture = event
                    elif say is not None:
                        phase = "full" if event.is_full else "estimate"
                        say("progress", {**which, "step": event.number, "steps": event.total, "phase": phase})
            except self._lost as lost:
                error = lost
            if isinstance(picture, Exception):
                raise picture
            if picture is not None:
                self.metrics.note(picture)
                return picture
            self.metrics.retries += 1
            log.warning("a replica died; attempt %d of %d", attempt + 1, ATTEMPTS)
        raise LostError(f"{ATTEMPTS} replicas died while they drew this picture, the last: {error}") from error


def is_allowed(header: str | None, token: str | None) -> bool:
    """Whether a call with this Authorization header may come in; compared in constant time."""
    return token is None or hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode())
