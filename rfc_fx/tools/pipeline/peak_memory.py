"""The most memory that a device, or on the CPU this process, held since it was last asked."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin_peak(device: torch.device) -> bool:
    """Begin to watch anew; False where nothing can be watched."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu":
        return False
    try:
        _CLEAR.write_text("5")  # Linux: the high-water mark of resident memory becomes what is resident now
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device) -> int | None:
    """Allocated on CUDA, resident on the CPU, since `begin_peak`; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "cpu" and _STATUS.exists() and (match := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(match[1]) * 1024
    return None
