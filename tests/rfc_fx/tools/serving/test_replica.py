"""Replicas: batches come apart by what fits, steps are told, and a generation ends that nobody waits for; over a worker that is made up."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rfc_fx.tools.requests.request import Request, RequestError
from rfc_fx.tools.requests.steps import GoneError, StepTaken
from rfc_fx.tools.requests.worker import Picture, Worker, WorkerSettings
from rfc_fx.tools.serving.replica import DrawingError, Replica, Ticket

Tell = Callable[[StepTaken], object]


class Painter:
    """A worker that draws nothing, in two steps."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.fails: Callable[[Request], Exception | None] = lambda request: None
        self.between: Callable[[], object] = lambda: None

    def draw(self, requests: list[Request], tell: Tell) -> list[Picture]:
        for request in requests:
            if error := self.fails(request):
                raise error
        tell(StepTaken(1, 2, True))
        self.between()
        tell(StepTaken(2, 2, False))
        self.batches.append([request.seed for request in requests])
        return [Picture(str(request.seed).encode(), 1, 2, 0.1) for request in requests]


@pytest.fixture
def painter() -> Painter:
    return Painter()


def tickets(count: int, streams: bool = False) -> list[Ticket]:
    """Of requests with five and six steps in turn."""
    return [Ticket(Request(prompt="an apple", seed=seed, steps=5 + seed % 2), streams) for seed in range(count)]


def drawn(painter: Painter, asked: list[Ticket]) -> tuple[list[list[Any]], list[Any]]:
    """(everything that was said to each, what each has in the end)."""

    async def run() -> list[list[Any]]:
        replica = Replica.__new__(Replica)
        replica.worker, replica._turn = painter, asyncio.Lock()  # type: ignore[assignment]
        return [events async for events in replica.draw(asked)]

    events = asyncio.run(run())
    said = [[each[index] for each in events if each[index] is not None] for index in range(len(asked))]
    return said, [each[-1] if each else None for each in said]


def test_a_batch_comes_apart_by_what_fits_and_each_gets_its_own(painter: Painter) -> None:
    _, ends = drawn(painter, tickets(5))
    assert painter.batches == [[0, 2, 4], [1, 3]]
    assert [end.png for end in ends] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(("error", "kind"), [(RequestError("no"), RequestError), (MemoryError("too large"), DrawingError)])
def test_one_that_fails_leaves_its_mates_their_pictures(painter: Painter, error: Exception, kind: type[Exception]) -> None:
    painter.fails = lambda request: error if request.seed == 2 else None
    _, ends = drawn(painter, tickets(5))
    assert painter.batches == [[0], [4], [1, 3]]  # the batch of the one that fails is drawn one by one
    assert isinstance(ends[2], kind)
    assert [end.png for index, end in enumerate(ends) if index != 2] == [b"0", b"1", b"3", b"4"]


def test_steps_are_told_to_those_that_ask(painter: Painter) -> None:
    asked = [Ticket(Request(prompt="an apple", seed=seed), streams=seed == 1) for seed in range(2)]
    quiet, told = drawn(painter, asked)[0]
    assert told[:-1] == [StepTaken(1, 2, True), StepTaken(2, 2, False)]
    assert len(quiet) == 1


def test_a_generation_that_nobody_waits_for_ends_and_one_that_somebody_waits_for_does_not(painter: Painter) -> None:
    asked = tickets(4)

    def leave() -> None:
        for ticket in asked[:3]:
            ticket.is_gone = True  # both with five steps, and one of the two with six

    painter.between = leave
    _, ends = drawn(painter, asked)
    assert isinstance(ends[0], GoneError)
    assert painter.batches == [[3]]  # the one that had left was not begun
    assert ends[1] is None


def test_a_batch_that_is_cancelled_ends_before_the_next_begins(painter: Painter) -> None:
    at_work, reached, go_on = [0, 0], threading.Event(), threading.Event()

    def between() -> None:
        at_work[0] += 1
        at_work[1] = max(at_work)
        reached.set()
        go_on.wait(10)
        at_work[0] -= 1

    async def run() -> list[Any]:
        replica = Replica.__new__(Replica)
        replica.worker, replica._turn = painter, asyncio.Lock()  # type: ignore[assignment]
        painter.between = between
        first = replica.draw(tickets(1, streams=True))
        await anext(first)
        await asyncio.to_thread(reached.wait, 10)
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        closing = asyncio.ensure_future(first.aclose())
        await asyncio.sleep(0)
        second = [events async for events in replica.draw(tickets(1))]
        await closing
        return second

    (end,) = asyncio.run(run())[-1]
    assert end.png == b"0"
    assert at_work == [0, 1]
    assert painter.batches == [[0]]  # the one that was cancelled ended at its next step


@pytest.mark.usefixtures("few_blocks")
def test_a_worker_tells_every_step_once_and_draws_the_same() -> None:
    worker, requests = Worker(WorkerSettings(model="digits", nfc=3)), [Request(label=3, seed=1, steps=6)]
    steps: list[StepTaken] = []
    (told,), (alone,) = worker.draw(requests, steps.append), worker.draw(requests)
    assert [(step.number, step.total) for step in steps] == [(number, 6) for number in range(1, 7)]
    assert sum(step.is_full for step in steps) == told.nfc == 3
    assert told.png == alone.png

    def leave(step: StepTaken) -> None:
        raise GoneError("left")

    with pytest.raises(GoneError):
        worker.draw(requests, leave)
    assert worker.draw(requests)[0].png == alone.png
