"""Triton kernels through Triton's own ptxas, for cards that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from absent_gpu import Driver
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers

ARCHITECTURES = (80, 90, 100)
"""sm_80: A100; sm_90: H100; sm_100: B200."""


@contextmanager
def architecture(capability: int, cache: Path) -> Iterator[None]:
    """Compile for this one inside; cubins are kept there."""
    from triton import knobs
    from triton.runtime import driver

    before = driver.active
    driver.set_active(Driver(capability))
    try:
        with patch.object(triton_helpers, "set_driver_to_gpu", lambda *_: None), knobs.cache.scope():
            knobs.cache.dir = str(cache / f"sm_{capability}")
            yield
    finally:
        driver.set_active(before)


def compile_kernel(body: str, capability: int) -> None:
    """Compile the first configuration of a kernel, inside of `architecture`; raises what Triton or ptxas raises."""
    name = re.search(r"def (triton_\w+)\(", body)
    assert name is not None
    kernel: Any = getattr(PyCodeCache.load(for_architecture(body, capability)), name[1])
    kernel.configs = kernel.configs[:1]
    kernel.precompile(warm_cache_only=True)


def for_architecture(body: str, capability: int) -> str:
    """A kernel's source with the capability that it was generated for exchanged."""
    changed, count = re.subn(r"\bcc=90\b", f"cc={capability}", body)
    assert count > 0
    return changed


def anonymous(body: str) -> str:
    """A kernel's source without its name: equal for kernels that compute the same."""
    name = re.search(r"def (triton_\w+)\(", body)
    assert name is not None
    return re.sub(rf"\b{name[1]}\b|'kernel_name': '\w+'|'backend_hash': '\w+'|# Topologically.*|# Source node.*", "", body)
