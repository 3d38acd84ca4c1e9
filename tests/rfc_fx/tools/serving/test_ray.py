"""`rfc-fx serve` with Ray Serve: pictures, a full queue, cancelled requests, killed replicas, limits, the end. Skipped without Ray."""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import psutil
import pytest

from benchmarks.serving.server import IMAGES, got, largest, metrics, pictures, processes, server
from rfc_fx.tools.requests.request import Request
from rfc_fx.tools.requests.worker import Worker, WorkerSettings

pytestmark = pytest.mark.slow

TOKEN, WAITING = "a secret", 12
"""As in conftest.py."""


@cache
def worker() -> Worker:
    return Worker(WorkerSettings(model="digits", steps=20))


def alone(label: int, seed: int, steps: int | None = None) -> bytes:
    """A picture drawn by itself, in this process."""
    return worker().draw([Request(label=label, seed=seed, steps=steps)])[0].png


def drawn(served: Any, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    return got(served.address, IMAGES, body, TOKEN)


def opened(served: Any, body: dict[str, Any]) -> socket.socket:
    """A request whose answer is not read."""
    host, port = served.address.removeprefix("http://").split(":")
    sent = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)), timeout=120)
    head = f"POST {IMAGES} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(sent)}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def until(served: Any, waiting: int, seconds: float = 30) -> None:
    """Wait until so many pictures are waited for."""
    begin = time.monotonic()
    while metrics(served.address)["rfc_fx_queue"] != waiting:
        assert time.monotonic() - begin < seconds, f"{waiting} should wait, {metrics(served.address)}"
        time.sleep(0.05)


def test_pictures_of_batches_are_those_drawn_alone(served: Any) -> None:
    bodies = [{"class": index % 10, "seed": index, "steps": 20 + index % 2} for index in range(10)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: drawn(served, body), bodies))
    for body, (status, answer, _) in zip(bodies, answers, strict=True):
        assert status == 200, answer
        assert largest(pictures(answer)[0], alone(body["class"], body["seed"], body["steps"])) <= 1  # of 255: products of a batch


def test_progress_says_every_step_and_whether_it_was_full(served: Any) -> None:
    status, answer, headers = drawn(served, {"class": 3, "seed": 1, "n": 2, "steps": 8, "stream": True})
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    events = [part.split("\ndata: ") for part in answer.decode().removesuffix("\n\n").removeprefix("event: ").split("\n\nevent: ")]
    assert events[0][0] == "queued"
    assert events[-1][0] == "done"
    said = [json.loads(data) for name, data in events if name == "progress"]
    for index, picture in enumerate(json.loads(events[-1][1])["data"]):
        own = [each for each in said if each["picture"] == index]
        assert [each["step"] for each in own] == list(range(1, 9))
        assert {(each["steps"], each["seed"]) for each in own} == {(8, 1 + index)}
        assert [each["phase"] for each in own].count("full") == picture["nfc"] < 8


def test_a_full_queue_answers_429_and_a_cancelled_request_frees_its_places(served: Any) -> None:
    drawn(served, {"class": 1, "steps": 4})
    before = metrics(served.address)
    held = [opened(served, {"class": 1, "n": WAITING // 2, "steps": 200, "stream": streams}) for streams in (True, False)]
    until(served, WAITING)
    for streams in (True, False):
        status, answer, headers = drawn(served, {"class": 3, "stream": streams})
        assert status == 429, answer
        assert int(headers["retry-after"]) >= 1
        assert f"{WAITING} pictures are waited for" in json.loads(answer)["error"]["message"]
    for connection in held:
        connection.close()
    until(served, 0, seconds=10)
    assert drawn(served, {"class": 3, "n": 2, "steps": 4})[0] == 200
    after = metrics(served.address)
    assert after["rfc_fx_pictures_total"] - before["rfc_fx_pictures_total"] == 2  # what was cancelled was not drawn to its end
    assert after['rfc_fx_requests_total{status="429"}'] >= 2


def test_a_replica_that_is_killed_loses_no_request(served: Any) -> None:
    before = metrics(served.address)["rfc_fx_retries_total"]
    bodies = [{"class": index, "seed": 100 + index, "steps": 60} for index in range(8)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = [pool.submit(drawn, served, body) for body in bodies]
        until(served, len(bodies))
        busiest = max(processes(served.process, "replica"), key=lambda process: float(process.cpu_percent(interval=0.3)))
        os.kill(busiest.pid, signal.SIGKILL)  # the other one may have none of them
        results = [answer.result() for answer in answers]
    for body, (status, answer, _) in zip(bodies, results, strict=True):
        assert status == 200, answer
        assert largest(pictures(answer)[0], alone(body["class"], body["seed"], 60)) <= 1
    assert metrics(served.address)["rfc_fx_retries_total"] > before
    begin = time.monotonic()
    while len(processes(served.process, "replica")) < 2:  # and another one starts
        assert time.monotonic() - begin < 120
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        ({"class": 3, "size": "9999x9999"}, 400, "width must be an integer from 1 to 4096"),
        ({"class": 3, "size": "64x64"}, 400, "DigitsPipeline takes no width"),
        ({"class": 3, "steps": 201}, 400, "steps must be an integer from 1 to 200"),
        ({"class": 3, "n": 9}, 400, "n must be an integer from 1 to 8"),
        ({"class": 30}, 400, "class must be from 0 to 9, got 30"),
        ({"prompt": "a" * 4_001}, 400, "prompt must have at most 4000 characters"),
        ({"prompt": "an apple"}, 400, "DigitsPipeline takes no prompt"),
        ({"prompt": "a" * 5_000_000}, 413, "body: must have at most 65536 bytes"),
    ],
)
def test_what_is_out_of_bounds_is_refused(served: Any, body: Any, status: int, message: str) -> None:
    found, answer, _ = drawn(served, body)
    assert found == status
    assert message in json.loads(answer)["error"]["message"]


def test_a_server_that_others_can_reach_wants_its_token(served: Any) -> None:
    for token in ("", "another", TOKEN[:-1]):
        assert got(served.address, IMAGES, {"class": 3}, token)[0] == 401
    assert got(served.address, "/health")[0] == 200


def test_nothing_but_the_server_listens_beyond_this_machine(served: Any) -> None:
    port = int(served.address.rpartition(":")[2])
    found = {
        (connection.laddr.ip, connection.laddr.port)
        for process in [served.process, *served.process.children(recursive=True)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert [own for own in found if own[1] == port]
    assert {ip for ip, own in found if own != port} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_metrics_and_health(served: Any) -> None:
    drawn(served, {"class": 3})
    said = metrics(served.address)
    names = ("full_steps_total", "steps_total", "full_step_ms", "estimated_step_ms", "queue", "state_bytes", "retries_total")
    assert all(f"rfc_fx_{name}" in said for name in names)
    assert said['rfc_fx_requests_total{status="200"}'] >= 1
    assert 0 < said["rfc_fx_full_steps_total"] < said["rfc_fx_steps_total"]
    assert said["rfc_fx_state_bytes"] > 0
    assert json.loads(got(served.address, "/health")[1]) == {"status": "ok", "waiting": 0}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_ended_answers_what_it_draws(by: signal.Signals) -> None:
    pytest.importorskip("ray.serve", reason="pip install 'rfc-fx[ray]'")
    with server("digits", "--no-compile", "--steps", 20) as (address, process), ThreadPoolExecutor(1) as pool:
        got(address, IMAGES, {"class": 3, "steps": 4})
        answer = pool.submit(got, address, IMAGES, {"class": 3, "seed": 1, "n": 4, "steps": 200})
        while metrics(address)["rfc_fx_queue"] < 4:
            time.sleep(0.05)
        process.send_signal(by)
        while json.loads(got(address, "/health")[1])["status"] != "closing":
            time.sleep(0.05)
        assert got(address, IMAGES, {"class": 3})[0] == 503
        status, body, _ = answer.result()
        assert status == 200
        assert largest(pictures(body)[0], alone(3, 1, 200)) <= 1
        assert process.wait(120) == 0
