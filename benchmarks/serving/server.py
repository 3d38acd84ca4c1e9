"""A server in a process of its own, its processes, and calls to it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
from PIL import Image

ROOT = Path(__file__).parents[2]
READY = 600.0
"""Seconds until a server has to be ready."""
IMAGES = "/v1/images/generations"


class ServerError(Exception):
    """A server that does not come up."""


@contextmanager
def server(model: str, *options: object, host: str = "127.0.0.1", token: str = "") -> Iterator[tuple[str, psutil.Process]]:
    """`rfc-fx serve` with these options on a free port: (address on this machine, its process). ServerError where it does not come up."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    command = [sys.executable, "-m", "rfc_export.main", "serve", model, "--host", host, "--port", str(port), *map(str, options)]
    paths = [str(ROOT), str(ROOT / "export"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths), "RFC_FX_TOKEN": token}
    process = subprocess.Popen(command, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        begin = time.monotonic()
        while got(address, "/health")[0] != 200:
            if process.poll() is not None or time.monotonic() - begin > READY:
                raise ServerError(f"the server of {model} is not ready after {READY:g} s, or has ended: {process.returncode}")
            time.sleep(0.5)
        yield address, psutil.Process(process.pid)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def processes(server: psutil.Process, deployment: str) -> list[psutil.Process]:
    """Of a server: the processes of "replica", which draw, or of "front"."""
    found = []
    for child in server.children(recursive=True):
        try:
            if f"ServeReplica:rfc-fx:{deployment}" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def mib(of: Sequence[psutil.Process]) -> int:
    """Resident memory of some processes together."""
    return round(sum(int(process.memory_info().rss) for process in of) / 2**20)


def got(address: str, path: str, body: Any = None, token: str = "", timeout: float = 600) -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers) of one request; status 0 where nobody answers."""
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, sent, {"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, response.read(), {name.lower(): value for name, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}
    except OSError as error:
        return 0, str(error).encode(), {}


def pictures(answer: bytes) -> list[bytes]:
    """The PNG files in an answer."""
    return [base64.b64decode(each["b64_json"]) for each in json.loads(answer)["data"]]


def patient(address: str, body: dict[str, Any]) -> tuple[int, bytes | None, float]:
    """(status, picture, seconds); comes again where the queue is full, after as long as the server says."""
    begin = time.monotonic()
    while True:
        status, answer, headers = got(address, IMAGES, body)
        if status != 429:
            return status, pictures(answer)[0] if status == 200 else None, time.monotonic() - begin
        time.sleep(float(headers["retry-after"]))


def metrics(address: str) -> dict[str, float]:
    """What `/metrics` says, by name and labels."""
    lines = got(address, "/metrics")[1].decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def largest(one: bytes, other: bytes) -> int:
    """The largest difference of two pictures, of 255."""
    first, second = (np.asarray(Image.open(io.BytesIO(each)), dtype=np.int16) for each in (one, other))
    return int(np.abs(first - second).max()) if first.shape == second.shape else 255
