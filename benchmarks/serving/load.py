"""Load: `rfc-fx serve` in a process of its own, clients in threads, replicas killed meanwhile; every picture beside the one drawn alone."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import typer
from PIL import Image

from benchmarks.files import RESULTS, Record, write_json
from rfc_fx.tools.requests.request import Request
from rfc_fx.tools.requests.worker import Worker, WorkerSettings
from rfc_fx.tools.summary_json import versions

READY = 600.0
"""Seconds until a server has to be ready."""


@contextmanager
def server(model: str, replicas: int, max_batch: int, steps: int, waiting: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server of the digits or emoji model on a free port: (address, its process)."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    options = ["--replicas", replicas, "--max-batch", max_batch, "--steps", steps, "--max-waiting", waiting, "--port", port, "--no-compile"]
    process = subprocess.Popen([sys.executable, "-m", "rfc_export.main", "serve", model, *map(str, options)])
    address = f"http://127.0.0.1:{port}"
    try:
        begin = time.monotonic()
        while True:
            if process.poll() is not None or time.monotonic() - begin > READY:
                raise typer.BadParameter(f"the server of {model} is not ready after {READY:g} s, or has ended: {process.returncode}")
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield address, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def replicas_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes that draw, of a server."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "ServeReplica" in " ".join(child.cmdline()) and "replica" in " ".join(child.cmdline()).split("ServeReplica")[-1].lower():
                found.append(child)
        except psutil.Error:
            continue
    return [child for child in found if "front" not in " ".join(child.cmdline())]


def asked(index: int, is_digits: bool) -> dict[str, Any]:
    """The body of a request."""
    return {"class": index % 10, "seed": index} if is_digits else {"prompt": "an apple, flat style, on light blue", "seed": index}


def call(address: str, body: dict[str, Any]) -> tuple[int, bytes | None, float]:
    """(status, picture, seconds); comes again where the queue is full, as long as the server says."""
    begin = time.monotonic()
    while True:
        request = urllib.request.Request(f"{address}/v1/images/generations", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                picture = base64.b64decode(json.load(response)["data"][0]["b64_json"])
                return response.status, picture, time.monotonic() - begin
        except urllib.error.HTTPError as error:
            if error.code != 429:
                return error.code, None, time.monotonic() - begin
            time.sleep(float(error.headers["Retry-After"]))


def largest(one: bytes, other: bytes) -> int:
    """The largest difference of two pictures, of 255."""
    first, second = (np.asarray(Image.open(io.BytesIO(each)), dtype=np.int16) for each in (one, other))
    return int(np.abs(first - second).max()) if first.shape == second.shape else 255


def main(
    model: Annotated[str, typer.Argument()] = "digits",
    requests: Annotated[int, typer.Option(min=1)] = 200,
    clients: Annotated[int, typer.Option(min=1)] = 16,
    replicas: Annotated[int, typer.Option(min=1)] = 2,
    kills: Annotated[int, typer.Option(min=0, help="replicas that are killed, at equal distances")] = 2,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    pictures: Annotated[Path | None, typer.Option(help="folder for the pictures")] = None,
    out: Annotated[Path | None, typer.Option(help="file of the record")] = RESULTS / "serving" / "load.json",
) -> None:
    """Ask a server for many pictures while replicas are killed, and hold each against the one drawn alone."""
    is_digits = model == "digits"
    bodies = [asked(index, is_digits) for index in range(requests)]
    done = threading.Semaphore(0)
    with server(model, replicas, 8, steps, 4 * clients) as (address, process):
        begin = time.monotonic()

        def one(body: dict[str, Any]) -> tuple[int, bytes | None, float]:
            try:
                return call(address, body)
            finally:
                done.release()

        with ThreadPoolExecutor(clients) as pool:
            answers = [pool.submit(one, body) for body in bodies]
            for _ in range(kills):
                for _ in range(requests // (kills + 1)):
                    done.acquire()
                if alive := replicas_of(process):
                    os.kill(alive[0].pid, signal.SIGKILL)
            results = [answer.result() for answer in answers]
        seconds = time.monotonic() - begin
        with urllib.request.urlopen(f"{address}/metrics", timeout=30) as response:
            metrics = response.read().decode()
        memory = [child.memory_info().rss / 2**20 for child in replicas_of(process)]
    worker = Worker(WorkerSettings(model=model, steps=steps))
    wrong = 0
    for body, (_, picture, _) in zip(bodies, results, strict=True):
        alone = worker.draw([Request(prompt=body.get("prompt"), label=body.get("class"), seed=body["seed"])])[0]
        wrong += picture is not None and largest(picture, alone.png) > 1
    for index, (_, picture, _) in enumerate(results):
        if pictures is not None and picture is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            (pictures / f"{index:03d}.png").write_bytes(picture)
    waited = quantiles([taken for _, _, taken in results], n=20)
    record: Record = {
        "settings": {"model": model, "requests": requests, "clients": clients, "replicas": replicas, "kills": kills, "steps": steps},
        "seconds": round(seconds, 1),
        "lost": sum(status != 200 for status, _, _ in results),
        "mixed_up": wrong,
        "p50_s": round(waited[9], 2),
        "p95_s": round(waited[18], 2),
        "retries": int(next(line.split()[1] for line in metrics.splitlines() if line.startswith("rfc_fx_retries_total"))),
        "replica_mib": [round(each) for each in memory],
        "versions": versions(),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, record)
    typer.echo(json.dumps(record, indent=1))
    if record["lost"] or wrong:
        raise typer.Exit(1)
