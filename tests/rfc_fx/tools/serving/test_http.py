"""A server over HTTP with a real worker, without Ray: an ASGI server in this process; skipped where Starlette and uvicorn are missing."""

import asyncio
import base64
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rfc_fx.tools.requests.request import Request
from rfc_fx.tools.requests.worker import WorkerSettings
from rfc_fx.tools.serving.front import Front
from rfc_fx.tools.serving.http import Http
from rfc_fx.tools.serving.replica import Replica, Ticket

pytest.importorskip("starlette", reason="pip install 'rfc-fx[ray]'")
uvicorn: Any = pytest.importorskip("uvicorn", reason="pip install 'rfc-fx[ray]'")

IMAGES = "/v1/images/generations"
Get = Callable[..., tuple[int, bytes, dict[str, str]]]


def got(address: str, path: str, body: Any = None, token: str = "secret") -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers) of one request."""
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, sent, {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


async def served(worker: WorkerSettings, asks: Callable[[str, Replica, Front], Any]) -> None:
    """Serve a worker while `asks` runs in a thread."""
    from starlette.requests import Request as Asked

    replica = Replica(worker)

    async def draw(request: Request, streams: bool) -> AsyncIterator[Any]:
        async for (event,) in replica.draw([Ticket(request, streams)]):
            yield event

    front = Front(draw, lost=(), most_waiting=3)
    http = Http(front, "digits", "secret", takes_classes=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await http.answer(Asked(scope, receive)))(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    running = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        await asyncio.to_thread(asks, f"http://127.0.0.1:{port}", replica, front)
    finally:
        server.should_exit = True
        await running


@pytest.mark.usefixtures("few_blocks")
def test_a_server_draws_streams_refuses_and_counts() -> None:
    def asks(address: str, replica: Replica, front: Front) -> None:
        assert got(address, "/health")[0] == 200
        assert b"<form" in got(address, "/")[1]
        status, body, _ = got(address, IMAGES, {"class": 3, "seed": 1, "n": 2})
        assert status == 200
        pictures = [base64.b64decode(each["b64_json"]) for each in json.loads(body)["data"]]
        assert pictures == [replica.worker.draw([Request(label=3, seed=seed)])[0].png for seed in (1, 2)]
        status, body, headers = got(address, IMAGES, {"class": 5, "seed": 2, "stream": True})
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        events = [line.removeprefix("event: ") for line in body.decode().splitlines() if line.startswith("event: ")]
        assert events == ["queued", "progress", "progress", "progress", "progress", "done"]
        assert got(address, IMAGES, {"class": 3}, "wrong")[0] == 401
        assert got(address, IMAGES, {"class": 30})[0] == 400
        assert got(address, IMAGES, {"class": 3, "n": 4})[0] == 400  # more than the queue ever holds
        front.metrics.waiting = 1
        for streams in (False, True):
            status, _, headers = got(address, IMAGES, {"class": 3, "n": 3, "stream": streams})
            assert status == 429
            assert int(headers["retry-after"]) >= 1
        front.metrics.waiting = 0
        assert got(address, IMAGES)[0] == 405
        assert got(address, IMAGES, {"prompt": "a" * 70_000})[0] == 413
        assert got(address, "/nothing")[0] == 404
        metrics = got(address, "/metrics")[1].decode()
        assert "\nrfc_fx_pictures_total 3\n" in metrics
        assert '\nrfc_fx_requests_total{status="429"} 2\n' in metrics

    asyncio.run(served(WorkerSettings(model="digits", steps=4), asks))
