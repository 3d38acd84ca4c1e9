"""The front of a server: bodies, places, retries, events, counts; without Ray, over a worker that is made up."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rfc_fx.tools.commands.serve import is_loopback
from rfc_fx.tools.requests.request import Request, RequestError
from rfc_fx.tools.requests.steps import StepTaken
from rfc_fx.tools.requests.worker import Picture
from rfc_fx.tools.serving.api import BODY, parse_call
from rfc_fx.tools.serving.front import ClosingError, Front, FullError, LostError, is_allowed
from rfc_fx.tools.serving.page import page


class DiedError(Exception):
    """A replica is gone."""


def picture(request: Request) -> Picture:
    return Picture(f"{request.prompt} {request.seed}".encode(), 6, 20, 0.5, (9.0, 1.0), 1_000)


def front(draw: Callable[[Request, bool], AsyncIterator[Any]], most: int = 4) -> Front:
    return Front(draw, lost=(DiedError,), most_waiting=most)


def body(**fields: Any) -> bytes:
    return json.dumps({"prompt": "an apple", **fields}).encode()


def test_a_call_in_the_form_of_openai_is_pictures_with_seeds_in_a_row() -> None:
    call = parse_call(body(model="emoji", n=3, size="64x32", seed=7, response_format="b64_json", user="me"))
    assert [(request.seed, request.width, request.height) for request in call.requests] == [(7, 64, 32), (8, 64, 32), (9, 64, 32)]
    assert {request.prompt for request in call.requests} == {"an apple"}
    assert parse_call(body()).requests != parse_call(body()).requests  # a seed of its own, which the answer says


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "no JSON"),
        (b"[" * 30_000, "no JSON"),
        (b"3", "expected an object"),
        (body(n=9), "n must be an integer from 1 to 8, got 9"),
        (body(n=True), "n must be an integer"),
        (body(size="64"), "size must be such as 512x512 or auto, got '64'"),
        (body(size="4096x4096"), "width x height must be at most"),
        (body(size="9999x1"), "width must be an integer from 1 to 4096, got 9999"),
        (body(response_format="url"), "response_format must be b64_json"),
        (body(stream="yes"), "stream must be true or false"),
        (body(colour="red"), "'colour' is no field of a request"),
        (body(steps=1_000), "steps must be an integer from 1 to 200"),
        (b" " * (BODY + 1), "at most 65536 bytes"),
    ],
)
def test_a_body_that_is_none_is_refused_before_it_takes_a_place(text: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_call(text)


def test_every_picture_of_a_call_comes_with_its_seed() -> None:
    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        await asyncio.sleep(0.001 * (10 - request.seed))  # the last is ready first
        yield picture(request)

    served = front(draw)
    answer = asyncio.run(served.images(parse_call(body(n=3, seed=1))))
    assert [base64.b64decode(each["b64_json"]) for each in answer["data"]] == [b"an apple 1", b"an apple 2", b"an apple 3"]
    assert [(each["seed"], each["nfc"], each["steps"]) for each in answer["data"]] == [(1, 6, 20), (2, 6, 20), (3, 6, 20)]


def test_a_full_queue_says_when_to_come_again_and_empties() -> None:
    async def run() -> None:
        free = asyncio.Event()

        async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
            await free.wait()
            yield picture(request)

        served = front(draw)
        first = asyncio.ensure_future(served.images(parse_call(body(n=3))))
        await asyncio.sleep(0)
        with pytest.raises(FullError) as full:
            await served.images(parse_call(body(n=2)))
        assert full.value.seconds >= 1
        free.set()
        await first
        assert served.metrics.waiting == 0
        await served.images(parse_call(body(n=4)))

    asyncio.run(run())


def test_a_call_that_no_queue_could_hold_is_refused_for_good() -> None:
    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        yield picture(request)

    with pytest.raises(RequestError, match="n must be an integer from 1 to 4, got 5"):
        front(draw, most=4).parsed(body(n=5))


def test_a_call_that_is_cancelled_gives_its_places_back_and_ends_its_drawing() -> None:
    async def run() -> None:
        ended: list[int] = []

        async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append(request.seed)
                raise
            yield picture(request)

        served = front(draw)
        call = asyncio.ensure_future(served.images(parse_call(body(n=4, seed=0))))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.01)
        assert ended == [0, 1, 2, 3]
        assert served.metrics.waiting == 0

    asyncio.run(run())


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_a_picture_whose_replica_dies_is_drawn_by_another_at_most_three_times(deaths: int) -> None:
    seeds: list[int] = []

    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        seeds.append(request.seed)
        if len(seeds) <= deaths:
            raise DiedError("killed")
        yield picture(request)

    served = front(draw)
    call = parse_call(body(seed=5))
    if deaths == 3:
        with pytest.raises(LostError, match="3 replicas died while they drew this picture, the last: killed"):
            asyncio.run(served.images(call))
    else:
        assert base64.b64decode(asyncio.run(served.images(call))["data"][0]["b64_json"]) == b"an apple 5"
    assert set(seeds) == {5}  # the same noise
    assert len(seeds) == min(deaths + 1, 3)
    assert f"rfc_fx_retries_total {deaths}" in served.metrics.text()
    assert served.metrics.waiting == 0


def test_events_say_every_step_and_end_with_the_answer() -> None:
    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        assert streams
        await asyncio.sleep(0.03)
        for step in (1, 2):
            yield StepTaken(step, 2, step == 1)
        yield picture(request)

    async def run() -> list[Any]:
        return [event async for event in front(draw).events(parse_call(body(seed=7)), every=0.01)]

    *before, first, second, done = asyncio.run(run())
    assert len(before) >= 2  # one says that it waits, others that it still does
    assert {event for event, _ in before} == {"queued"}
    assert first == ("progress", {"picture": 0, "seed": 7, "step": 1, "steps": 2, "phase": "full"})
    assert second == ("progress", {"picture": 0, "seed": 7, "step": 2, "steps": 2, "phase": "estimate"})
    assert done[0] == "done"


def test_events_say_where_a_picture_is_drawn_again() -> None:
    calls: list[int] = []

    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        calls.append(request.seed)
        yield StepTaken(1, 2, True)
        if len(calls) == 1:
            raise DiedError("killed")
        yield picture(request)

    async def run() -> list[str]:
        return [name async for name, _ in front(draw).events(parse_call(body()))]

    assert asyncio.run(run()) == ["queued", "progress", "retried", "progress", "done"]


def test_events_that_nobody_reads_any_more_give_their_place_back() -> None:
    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        await asyncio.sleep(60)
        yield picture(request)

    async def run() -> None:
        served = front(draw)
        events = served.events(parse_call(body(n=4)))
        await anext(events)
        with pytest.raises(FullError):
            await anext(served.events(parse_call(body())))  # before the first event, so that it can be answered by 429
        await events.aclose()  # type: ignore[attr-defined]
        assert served.metrics.waiting == 0

    asyncio.run(run())


def test_a_server_that_closes_answers_what_it_has_and_takes_nothing_more() -> None:
    async def run() -> None:
        async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
            await asyncio.sleep(0.05)
            yield picture(request)

        served = front(draw)
        call = asyncio.ensure_future(served.images(parse_call(body())))
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(served.drained())
        await asyncio.sleep(0.01)
        with pytest.raises(ClosingError):
            await served.images(parse_call(body()))
        await closing
        assert call.done()

    asyncio.run(run())


def test_metrics_count_what_was_drawn() -> None:
    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        yield picture(request)

    served = front(draw)
    asyncio.run(served.images(parse_call(body(n=2))))
    text = served.metrics.text()
    for line in ("pictures_total 2", "full_steps_total 12", "steps_total 40", "full_step_ms 9", "estimated_step_ms 1", "state_bytes 1000"):
        assert f"\nrfc_fx_{line}\n" in text
    assert text.count("# TYPE") == text.count("# HELP") == 10


def test_a_token_is_asked_for_where_there_is_one() -> None:
    assert is_allowed(None, None)
    assert is_allowed("Bearer secret", "secret")
    assert not any(is_allowed(header, "secret") for header in (None, "", "Bearer", "secret", "Bearer secre", "Bearer sécret"))


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.lan", False)])
def test_addresses_of_this_machine_alone(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone


def test_the_page_names_the_model_and_escapes_it() -> None:
    text = page("<b>emoji</b>", takes_classes=False)
    assert "&lt;b&gt;emoji" in text
    assert "<b>emoji" not in text
    assert '"prompt": String(' in text
    assert '"class": Number(' in page("digits", takes_classes=True)
    assert "{{" not in text
