"""The libraries behind ONNX: what is installed, whether it works, and what to install."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rfc_export.errors import BackendError

OPSET = 20
"""Opset 23 makes attention one node, which TensorRT cannot build in float32 nor inside `If`."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

WIDENING = ("cpu",)
"""Devices whose provider has no arithmetic in bfloat16: programs for them compute in float32, between weights and state as they are."""


def check(device: torch.device) -> None:
    """BackendError where ONNX Runtime is missing or broken, or has no provider for the device; `build` looks for onnx itself."""
    providers = imported("onnxruntime", "InferenceSession").get_available_providers()
    if PROVIDERS.get(device.type) not in providers:
        raise BackendError(
            f"onnx: this onnxruntime has {', '.join(providers)}, none for {device.type}; "
            "pip install 'rfc-fx[onnx-gpu]' in an environment without [onnx]: the two exclude each other"
        )


def imported(name: str, attribute: str) -> Any:
    """The module of that name; BackendError where it is missing, broken, or lacks the attribute."""
    try:
        module = import_module(name)
    except Exception as error:  # a broken installation raises what it likes
        raise BackendError(
            f"onnx: {type(error).__name__}: {error}; pip install 'rfc-fx[onnx]', or 'rfc-fx[onnx-gpu]' for CUDA (they exclude each other)"
        ) from error
    if not hasattr(module, attribute):
        raise BackendError(
            f"onnx: {name} is broken, it has no {attribute}, as when onnxruntime and onnxruntime-gpu were both installed; "
            "reinstall one of them"
        )
    return module


def versions() -> dict[str, str]:
    """Versions of what wrote the models and what ran them first."""
    installed = {}
    for name in ("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed | {"opset": str(OPSET)}
