"""Load: `rfc-fx serve` in a process of its own, clients in threads, replicas killed meanwhile; every picture beside the one drawn alone."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import typer

from benchmarks.files import RESULTS, Record, write_json
from benchmarks.serving.server import largest, metrics, mib, patient, processes, server
from rfc_fx.tools.requests.request import Request
from rfc_fx.tools.requests.worker import Worker, WorkerSettings
from rfc_fx.tools.summary_json import versions

SUBJECTS = ("an apple", "a cat", "a rocket", "a sunflower", "a pizza", "a fish", "a snowman", "a car")
BACKGROUNDS = ("light blue", "yellow")
SAMPLES = 10
"""Times, at most, that memory is looked at."""
COMPARED = 200
"""Pictures, at least, that are held against those drawn alone, where there are as many."""


def asked(index: int, is_digits: bool) -> dict[str, Any]:
    """The body of a request."""
    if is_digits:
        return {"class": index % 10, "seed": index}
    return {"prompt": f"{SUBJECTS[index % 8]}, flat style, on {BACKGROUNDS[index // 8 % 2]}", "seed": index}


def main(
    model: Annotated[str, typer.Argument()] = "digits",
    requests: Annotated[int, typer.Option(min=2)] = 200,
    clients: Annotated[int, typer.Option(min=1)] = 16,
    replicas: Annotated[int, typer.Option(min=1)] = 2,
    kills: Annotated[int, typer.Option(min=0, help="replicas that are killed, at equal distances")] = 2,
    seconds: Annotated[float, typer.Option(min=0, help="over which requests are begun, evenly; 0: each client's as soon as it may")] = 0.0,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    pictures: Annotated[Path | None, typer.Option(help="folder for the pictures")] = None,
    out: Annotated[Path, typer.Option(help="file of the record")] = RESULTS / "serving" / "load.json",
) -> None:
    """Ask a server for many pictures while replicas are killed, and hold each against the one drawn alone."""
    is_digits, busy = model == "digits", os.getloadavg()[0]
    bodies = [asked(index, is_digits) for index in range(requests)]
    done, memory = threading.Semaphore(0), []
    deaths = [requests * number // (kills + 1) for number in range(1, kills + 1)]
    options = ("--replicas", replicas, "--max-batch", 8, "--steps", steps, "--max-waiting", 4 * clients, "--no-compile")
    with server(model, *options) as (address, process):
        begin = time.monotonic()

        def one(index: int) -> tuple[int, bytes | None, float]:
            time.sleep(max(0.0, begin + index * seconds / requests - time.monotonic()))
            try:
                return patient(address, bodies[index])
            finally:
                done.release()

        with ThreadPoolExecutor(clients) as pool:
            answers = [pool.submit(one, index) for index in range(requests)]
            for count in range(1, requests + 1):
                done.acquire()
                if count in deaths and (alive := processes(process, "replica")):
                    os.kill(alive[0].pid, signal.SIGKILL)
                if count % math.ceil(requests / SAMPLES) == 0 and not kills:
                    sizes = {"replica_mib": mib(processes(process, "replica")), "front_mib": mib(processes(process, "front"))}
                    memory.append({"requests": count, **sizes})
            results = [answer.result() for answer in answers]
        taken = time.monotonic() - begin
        said = metrics(address)
    held = list(range(0, requests, max(1, requests // COMPARED)))
    wrong = compared(WorkerSettings(model=model, steps=steps), [bodies[at] for at in held], [results[at][1] for at in held])
    for index, (_, picture, _) in enumerate(results):
        if pictures is not None and picture is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            (pictures / f"{index:03d}.png").write_bytes(picture)
    waited = quantiles([waiting for _, _, waiting in results], n=20)
    record: Record = {
        "settings": {"model": model, "requests": requests, "clients": clients, "replicas": replicas, "kills": kills, "steps": steps}
        | {"seconds": seconds, "cores": os.cpu_count(), "load_before": round(busy, 1)},
        "seconds": round(taken, 1),
        "lost": sum(status != 200 for status, _, _ in results),
        "mixed_up": wrong,
        "compared": len(held),
        "p50_s": round(waited[9], 2),
        "p95_s": round(waited[18], 2),
        "retries": int(said["rfc_fx_retries_total"]),
        "full_step_ms": said.get("rfc_fx_full_step_ms"),
        "estimated_step_ms": said.get("rfc_fx_estimated_step_ms"),
        "memory": memory,
        "versions": versions(),
    }
    write_json(out, record)
    typer.echo(json.dumps(record, indent=1))
    if record["lost"] or wrong:
        raise typer.Exit(1)


def compared(settings: WorkerSettings, bodies: list[dict[str, Any]], drawn: list[bytes | None]) -> int:
    """How many pictures differ from those drawn alone in this process by more than the rounding of batched products (1 of 255)."""
    worker, wrong = Worker(settings), 0
    for body, picture in zip(bodies, drawn, strict=True):
        if picture is not None:
            alone = worker.draw([Request(prompt=body.get("prompt"), label=body.get("class"), seed=body["seed"])])[0]
            wrong += largest(picture, alone.png) > 1
    return wrong
