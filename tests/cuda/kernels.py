"""Triton kernels through Triton's own ptxas, for cards that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from absent_gpu import Driver
from record import Passed
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers

ARCHITECTURES = (80, 90, 100)
"""sm_80: A100; sm_90: H100; sm_100: B200."""

FLOAT8_FROM = 89
"""The first architecture whose kernels convert eight-bit floats; state of that type is refused below it (`check_types`)."""


def failures(kernels: Mapping[str, str], passed: Passed, cache: Path) -> Iterator[str]:
    """Compile kernels, by their text without names, to every architecture to which they have not been compiled; what failed."""
    for capability in ARCHITECTURES:
        with architecture(capability, cache):
            for text, body in kernels.items():
                mark = passed.compiled(text, capability)
                if mark.exists() or (capability < FLOAT8_FROM and any(name in body for name in ("fp8e4nv", "float8e4nv"))):
                    continue
                try:
                    compile_kernel(body, capability)
                except Exception as error:
                    yield f"sm_{capability}: {type(error).__name__}: {str(error)[-300:]}"
                else:
                    mark.parent.mkdir(exist_ok=True)
                    mark.touch()


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
