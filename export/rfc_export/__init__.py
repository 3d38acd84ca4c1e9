"""Artefacts of cached models: programs for AOTInductor, ONNX Runtime and TensorRT, and engines that run them.

rfc_export.export(model, "engine", backend="aoti", example_inputs=inputs)
engine = rfc_export.load("engine")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfc_export.component import PipelineEngine
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
    "PipelineEngine",
    "TargetError",
    "TrustError",
    "export",
    "load",
]

_PLACES = {
    "export": "exporter",
    "Manifest": "manifest",
    "Engine": "runtime",
    "load": "runtime",
    "PipelineEngine": "component",
    "ModelMixin": "component",  # diffusers looks in this package for the base class of PipelineEngine, to know how to load it
}
"""Modules of names; all other names above are of `errors`."""


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: the command answers Ctrl-C while torch is being loaded (`rfc_export.main`)."""
    if name not in __all__ and name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES.get(name, 'errors')}"), name)
    return value
