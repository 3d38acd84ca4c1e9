"""Soak: many random generations on shared models, in threads and tasks, a quarter of them failing: nothing of one may stay in another.

python -m benchmarks.soak [--generations 1000] [--minutes 30] [--out benchmarks/results/soak/soak.json]
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import tempfile
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import psutil  # type: ignore[import-untyped]
import torch
import typer
from diffusers import DDIMScheduler
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from benchmarks.capturing import captured_once
from benchmarks.files import RESULTS, Record, write_json
from benchmarks.soak.requests import SIZES, Pipelined, Request, drawn, drawn_in_a_task, every_signature, outcome, random_request
from benchmarks.soak.table import markdown
from rfc_fx.tools.summary_json import versions
from rfc_fx.zoo import digits_noise, load_digits
from rfc_fx.zoo.digits_pipeline import DigitsPipeline

EVERY, SETTLED = 20, 100
"""Generations between two drawings of the reference, and before the process has its size."""

THREADS = 4


def shared_models(folder: Path) -> dict[str, Any]:
    """The digits model under several methods and configurations, and an engine of it; weights are shared."""
    network = load_digits()[0]
    network.transformer_blocks = network.transformer_blocks[:4]
    models: dict[str, Any] = {
        "LogSNR": rfc_fx.transform(network, rfc.LogSNR(nfc=0.4), config=rfc_fx.Config(granularity="block")),
        "RFC": rfc_fx.transform(network, rfc.RFC(tau=0.2), config=rfc_fx.Config(granularity="block")),
        "TaylorSeer": rfc_fx.transform(network, rfc.TaylorSeer(interval=3, order=1), config=rfc_fx.Config(granularity="block")),
        "first block": rfc_fx.transform(network, rfc.FirstBlockCache(threshold=0.1)),
    }
    pipe = rfc_fx.accelerate(DigitsPipeline(network, DDIMScheduler()), rfc.LogSNR(nfc=0.4), compile=False)
    pipe.set_progress_bar_config(disable=True)
    models["pipeline"] = Pipelined(pipe)
    inputs = {
        "hidden_states": digits_noise([0, 0]),
        "timestep": torch.tensor([500.0, 500.0]),
        "class_labels": torch.tensor([3, 10]),
    }
    for dtype in ("float32", "int64"):  # samplers differ in the type of their timesteps
        inputs["timestep"] = torch.tensor([500, 500], dtype=getattr(torch, dtype))
        path = rfc_export.export(network, folder / dtype, backend="onnx", example_inputs=inputs, method=rfc.RFC(tau=0.2))
        models[f"engine {dtype}"] = rfc_export.load(path)
    return models


def suits(request: Request, models: dict[str, Any]) -> Request | None:
    """The request with the engine whose timesteps are of the sampler's type."""
    if not request.model.startswith("engine"):
        return request
    floats = request.sampler in ("Euler", "Heun")
    name = f"engine {'float32' if floats else 'int64'}"
    return Request(**{**vars(request), "model": name}) if name in models else None


class Soak:
    """The models, what was drawn first of each reference, and what happened."""

    def __init__(self, models: dict[str, Any], seed: int) -> None:
        self.models, self.generator = models, random.Random(seed)
        self.references = {
            name: Request(model=name, sampler="Euler" if "float32" in name else "DDIM", steps=9, batch=1, size=SIZES[0], seed=7)
            for name in models
        }
        self.first: dict[str, Tensor] = {}
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.checks = self.done = 0
        self.sizes: list[dict[str, float]] = []
        self._lock = threading.Lock()

    def compare(self) -> None:
        """Draw the reference of every model again; it has to be what it was, bit for bit."""
        for name, request in self.references.items():
            latents = drawn(request, self.models[name])
            if not torch.equal(latents, self.first.setdefault(name, latents)):
                self.wrong.append(f"{name} after {self.done} generations")
            self.checks += 1
        gc.collect()
        _trim()
        tensors = sum(issubclass(type(one), Tensor) for one in gc.get_objects())
        process = psutil.Process()
        self.sizes.append(
            {
                "generations": self.done,
                "rss_mib": process.memory_info().rss / 2**20,
                "threads": process.num_threads(),
                "files": _files(),
                "tensors": tensors,
            }
        )

    def _one(self, request: Request) -> None:
        found = outcome(request, self.models[request.model])
        with self._lock:
            self.outcomes[found] += 1
            if found != request.failure:
                self.wrong.append(f"{request} ended as {found}")

    def round(self, pool: ThreadPoolExecutor) -> None:
        """EVERY generations, half of them in threads, half in tasks of one loop."""
        requests = [one for _ in range(EVERY) if (one := suits(random_request(self.generator, list(self.models)), self.models))]
        in_threads, in_tasks = requests[::2], requests[1::2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # generations of three steps skip nothing, and say so
            list(pool.map(self._one, in_threads))
            asyncio.run(self._tasks(in_tasks))
        self.done += len(requests)

    async def _tasks(self, requests: list[Request]) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        results = await asyncio.gather(*(drawn_in_a_task(one, self.models[one.model]) for one in requests), return_exceptions=True)
        for request, result in zip(requests, results, strict=True):
            failed = isinstance(result, BaseException)
            self.outcomes[request.failure if failed or request.failure == "left early" else "none"] += 1
            if failed != (request.failure not in ("none", "left early")):
                self.wrong.append(f"{request} in a task: {result!r}")

    def record(self, seconds: float) -> Record:
        """What is kept of the run."""
        settled = next(size for size in self.sizes if size["generations"] >= min(SETTLED, self.done / 2))
        last = self.sizes[-1]
        return {
            "settings": {
                "generations": self.done,
                "threads": THREADS,
                "models": list(self.models),
                "torch_threads": torch.get_num_threads(),
            },
            "versions": versions(),
            "seconds": seconds,
            "outcomes": dict(self.outcomes),
            "references": self.checks,
            "wrong": self.wrong,
            "settled": settled,
            "last": last,
            "growth": last["rss_mib"] / settled["rss_mib"] - 1,
            "sizes": self.sizes,
        }


def _trim() -> None:
    """Let the allocator give back what it keeps for itself, so that what is left belongs to somebody."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else psutil.Process().num_fds()


def soak(generations: int, minutes: float, seed: int = 0) -> Record:
    """Run so many generations, or as many as fit into the minutes, and return the record."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, captured_once({}):
        run = Soak(shared_models(Path(folder)), seed)
        with ThreadPoolExecutor(THREADS) as pool:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for request in every_signature(list(run.models)):  # nothing is captured later, and pools of state have their size
                    if (one := suits(request, run.models)) is not None:
                        drawn(one, run.models[one.model])
                        list(pool.map(drawn, [one] * 2 * THREADS, [run.models[one.model]] * 2 * THREADS))
            run.compare()
            while run.done < generations and time.monotonic() - start < 60 * minutes:
                run.round(pool)
                run.compare()
    return run.record(time.monotonic() - start)


def main(
    generations: Annotated[int, typer.Option(min=1, help="at most")] = 1000,
    minutes: Annotated[float, typer.Option(min=0, help="at most")] = 30.0,
    seed: Annotated[int, typer.Option(help="of the requests")] = 0,
    out: Annotated[Path, typer.Option(help="the record")] = RESULTS / "soak" / "soak.json",
) -> None:
    """Run it, write the record, print it, and exit with 1 where anything was wrong."""
    record = soak(generations, minutes, seed)
    write_json(out, record)
    typer.echo(markdown(record))
    raise typer.Exit(int(bool(record["wrong"])))


if __name__ == "__main__":
    typer.run(main)
