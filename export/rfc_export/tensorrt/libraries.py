"""The libraries behind TensorRT: what is installed, whether it can be imported, and what to install."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from rfc_export.errors import BackendError

INSTALL = "pip install 'rfc-fx[tensorrt]' where NVIDIA's package index can be reached"


def check(device: torch.device) -> None:
    """BackendError with the reason where torch-tensorrt or TensorRT is missing or broken, or the device is no GPU."""
    imported("torch_tensorrt", installed("torch_tensorrt", "torch-tensorrt"))
    imported("tensorrt", installed("tensorrt", "tensorrt"))
    if device.type != "cuda":
        raise BackendError(f"tensorrt: engines are built and run on a GPU, the model is on {device}; move it with .to('cuda')")


def installed(module: str, package: str) -> str:
    """Version of a package, found without importing it; BackendError where it is missing."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError) as error:
        raise BackendError(f"tensorrt: {package} cannot be looked up: {type(error).__name__}: {error}; {INSTALL}") from error
    if spec is None:
        raise BackendError(f"tensorrt: {package} is not installed; {INSTALL}")
    return _version(package) or "of unknown version"


def imported(module: str, version: str) -> Any:
    """The module; BackendError, with its version and the reason, where the import fails."""
    try:
        return import_module(module)
    except Exception as error:  # bare Exception, AssertionError, RuntimeError, OSError: whatever is missing
        reason = " ".join(str(error).split())
        raise BackendError(f"tensorrt: {module} {version} cannot be imported: {type(error).__name__}: {reason}; {INSTALL}") from error


def _version(package: str) -> str | None:
    for name in (package, f"{package}-cu13", f"{package}-cu12"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_types(device: torch.device, dtypes: Iterable[torch.dtype]) -> None:
    """TensorRT computes in every type of a model; what it cannot build is told by the builder."""


def versions() -> dict[str, str]:
    """Versions of what built the engines; TensorRT opens its own version's only."""
    installed_versions = {name: _version(name) for name in ("torch-tensorrt", "tensorrt")}
    return {name: number for name, number in installed_versions.items() if number is not None}
