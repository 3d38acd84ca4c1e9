"""Replica: one worker behind a queue; batches of requests become generations, and their steps are told. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from rfc_fx.errors import RFCError
from rfc_fx.tools.load import one_line
from rfc_fx.tools.requests.request import Request, RequestError
from rfc_fx.tools.requests.steps import GoneError, StepTaken
from rfc_fx.tools.requests.worker import Worker, WorkerSettings

log = logging.getLogger("rfc_fx")


class DrawingError(RFCError):
    """A picture whose generation failed; drawn again it may fail again."""


@dataclass(eq=False)
class Ticket:
    """A request that waits for its picture."""

    request: Request
    streams: bool = False
    """Whether steps are asked for."""
    is_gone: bool = False
    """Whether the one who waited has left."""


class Replica:
    """One worker; its generations are drawn one after the other, off the event loop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.worker = Worker(settings)
        self._turn = asyncio.Lock()

    async def draw(self, tickets: Sequence[Ticket]) -> AsyncGenerator[list[Any], None]:
        """What happens to some requests: lists with an entry for each, a StepTaken, its picture, its error, or None.

        Those that fit together are one generation, which ends early where all of them have left.
        """
        for fit in dict.fromkeys(ticket.request.fit for ticket in tickets):
            async with self._turn:
                places = [index for index, ticket in enumerate(tickets) if ticket.request.fit == fit and not ticket.is_gone]
                async with aclosing(self._generation([tickets[index] for index in places])) as generation:
                    async for events in generation:
                        found = dict(zip(places, events, strict=True))
                        yield [found.get(index) for index in range(len(tickets))]

    async def _generation(self, tickets: list[Ticket]) -> AsyncGenerator[list[Any], None]:
        if not tickets:
            return
        loop, steps = asyncio.get_running_loop(), asyncio.Queue[StepTaken | None]()

        def tell(step: StepTaken) -> None:
            if all(ticket.is_gone for ticket in tickets):
                raise GoneError("nobody waits for these pictures any more")
            if any(ticket.streams for ticket in tickets):
                loop.call_soon_threadsafe(steps.put_nowait, step)

        drawing = asyncio.ensure_future(asyncio.to_thread(self._drawn, tickets, tell))
        drawing.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield [step if ticket.streams else None for ticket in tickets]
            yield await drawing
        finally:  # whoever stops listening leaves, and the next generation begins when this one has ended: they share a scheduler
            for ticket in tickets:
                ticket.is_gone = True
            await asyncio.wait([drawing])

    def _drawn(self, tickets: list[Ticket], tell: Any) -> list[Any]:
        """Pictures, or errors in their places; what fails together is drawn one by one."""
        try:
            return list(self.worker.draw([ticket.request for ticket in tickets], tell))
        except (RequestError, GoneError) as error:
            own: RFCError = error
        except Exception as error:  # whatever the pipeline raises; the server goes on
            log.exception("a batch of %d failed", len(tickets))
            own = DrawingError(f"{type(error).__name__}: {one_line(error)}")
        if len(tickets) == 1 or isinstance(own, GoneError):
            return [own] * len(tickets)
        return [each for ticket in tickets for each in self._drawn([ticket], tell)]
