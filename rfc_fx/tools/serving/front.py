"""Front: what stands between HTTP and the replicas: a bounded queue, retries where a replica dies, counts. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rfc_fx.errors import RFCError
from rfc_fx.tools.requests.prompts import ATTEMPTS
from rfc_fx.tools.requests.request import Limits, Request
from rfc_fx.tools.serving.api import Call, answer, parse_call
from rfc_fx.tools.serving.metrics import Metrics

log = logging.getLogger("rfc_fx")

Draw = Callable[[Request], Awaitable[Any]]


class FullError(RFCError):
    """The queue is full; the call may come again later."""

    def __init__(self, seconds: int, waiting: int) -> None:
        super().__init__(f"{waiting} pictures are waited for, which is the most; try again in {seconds} s")
        self.seconds = seconds


class LostError(RFCError):
    """A picture whose replicas died one after the other."""


class Front:
    """Draws calls through `draw`, which fails with one of `lost` where a replica has died: then another one draws, with the same seed."""

    def __init__(
        self, draw: Draw, *, lost: tuple[type[BaseException], ...], most_waiting: int, replicas: int = 1, limits: Limits = Limits()
    ) -> None:
        self._draw, self._lost, self._most, self._replicas, self._limits = draw, lost, most_waiting, replicas, limits
        self.metrics = Metrics()

    def parsed(self, body: bytes) -> Call:
        """The call of a body; RequestError for one that cannot be."""
        return parse_call(body, self._limits)

    async def images(self, call: Call) -> dict[str, Any]:
        """The answer with all pictures of a call. FullError where there is no place, LostError where three replicas died.

        Cancelled, the call gives its places back.
        """
        self._take(len(call.requests))
        drawing = [asyncio.ensure_future(self._one(request)) for request in call.requests]
        try:
            return answer(call.requests, await asyncio.gather(*drawing))
        finally:
            for each in drawing:
                each.cancel()
            self.metrics.waiting -= len(call.requests)

    async def events(self, call: Call, every: float = 0.5) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """The same as events: `queued`, `progress` while it is drawn, `done` with the answer."""
        begin = asyncio.get_running_loop().time()
        drawing = asyncio.ensure_future(self.images(call))
        try:
            yield "queued", {"waiting": self.metrics.waiting}
            while not drawing.done():
                await asyncio.wait([drawing], timeout=every)
                if not drawing.done():
                    yield "progress", {"seconds": round(asyncio.get_running_loop().time() - begin, 1), "waiting": self.metrics.waiting}
            yield "done", drawing.result()
        finally:
            drawing.cancel()

    def _take(self, places: int) -> None:
        if self.metrics.waiting + places > self._most:
            each = self.metrics.seconds / self.metrics.pictures if self.metrics.pictures else 1.0
            raise FullError(max(1, math.ceil(each * self.metrics.waiting / self._replicas)), self.metrics.waiting)
        self.metrics.waiting += places

    async def _one(self, request: Request) -> Any:
        error: BaseException | None = None
        for attempt in range(ATTEMPTS):
            try:
                picture = await self._draw(request)
            except self._lost as lost:
                error, self.metrics.retries = lost, self.metrics.retries + 1
                log.warning("a replica died; attempt %d of %d follows", attempt + 2, ATTEMPTS)
                continue
            self.metrics.note(picture)
            return picture
        raise LostError(f"{ATTEMPTS} replicas died while they drew this picture, the last: {error}") from error


def is_allowed(header: str | None, token: str | None) -> bool:
    """Whether a call with this Authorization header may come in; compared in constant time."""
    return token is None or hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode())
