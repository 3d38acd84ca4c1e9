"""What the device is, and what it reaches: a large copy and a large product."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.bench import Bench, left, tried
from benchmarks.latency.compiling import times_ms
from benchmarks.latency.timing import figures


def device_facts(bench: Bench, rows: dict[str, Any], until: float) -> None:
    """What the device is, and what it reaches in this run: a large copy and a large bf16 matrix product on random data."""
    rows |= {"device": "cpu", "threads": torch.get_num_threads()}
    if bench.cuda:
        about = torch.cuda.get_device_properties(bench.device)
        rows |= {
            "device": about.name,
            "memory_gib": about.total_memory / 2**30,
            "multiprocessors": about.multi_processor_count,
            "compute_capability": f"{about.major}.{about.minor}",
            "l2_mib": getattr(about, "L2_cache_size", 0) / 2**20,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    bench.facts = rows
    if (copy := tried(rows, left(until), lambda: copy_rate(bench.device, 2**22 if bench.tiny else 2**32))) is not None:
        rows["copy"] = copy
    if (product := tried(rows, left(until), lambda: product_rate(bench.device, 256 if bench.tiny else 8192))) is not None:
        rows["matmul_bf16"] = product


def copy_rate(device: torch.device, size: int) -> dict[str, float]:
    """A copy of so many bytes within the device's memory."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = figures(times_ms(lambda: target.copy_(source), device, 30))
    return {"bytes_read_and_written": 2 * size, "gb_per_s": 2 * size / taken["median_ms"] / 1e6, **taken}


def product_rate(device: torch.device, side: int) -> dict[str, float]:
    """A product of two square bfloat16 matrices of that side."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    taken = figures(times_ms(lambda: a @ b, device, 30))
    return {"side": side, "tflop_per_s": 2 * side**3 / taken["median_ms"] / 1e9, **taken}
