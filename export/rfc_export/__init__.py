"""Artefacts of cached models: programs for AOTInductor, ONNX Runtime and TensorRT, and engines that run them.

rfc_export.export(model, "engine", backend="aoti", example_inputs=inputs)
engine = rfc_export.load("engine")
"""

from __future__ import annotations

from rfc_export.errors import ArtifactError, BackendError, ExportError, MachineCodeWarning, TargetError, TrustError
from rfc_export.exporter import export
from rfc_export.manifest import Manifest
from rfc_export.runtime import Engine, load

__all__ = [
    "ArtifactError",
    "BackendError",
    "Engine",
    "ExportError",
    "MachineCodeWarning",
    "Manifest",
    "TargetError",
    "TrustError",
    "export",
    "load",
]
