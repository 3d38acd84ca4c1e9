"""A GPU benchmark that runs on the CPU, and a model of one block for it."""

import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.workloads import TINY_DIT
from benchmarks.latency.workloads import dit

CPU = torch.device("cpu")

ONE_BLOCK = replace(TINY_DIT, model=dit(1, 2, 32, side=8))


def bench(backend: str = "eager", seconds: float = 600) -> Bench:
    """A bench with so much time left."""
    return Bench(
        device=CPU, tiny=True, backend=backend, regional=False, steps=10, nfc=4, rounds=1, end=time.perf_counter() + seconds, full_steps=2
    )


def no_memory() -> Any:
    """A model that is too large."""
    raise torch.OutOfMemoryError("tried to allocate 24 GiB")
