"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a crash leaves either the old one or the new one."""
    unfinished = path.with_name(f".{path.name}.partial")
    write(unfinished)
    unfinished.chmod(0o644)  # safetensors leaves files that only their owner can read
    os.replace(unfinished, path)
