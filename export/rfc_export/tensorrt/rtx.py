"""TensorRT-RTX as a check without a GPU: whether it builds the ONNX programs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from rfc_export.errors import BackendError


def build_with_rtx(path: str | Path, compute_capability: str = "8.9") -> int | str:
    """Build an ONNX program with TensorRT-RTX for a GPU that need not be there; return the engine's bytes, or the layers in its way.

    Raises BackendError where TensorRT-RTX is missing or broken, or does not know the compute capability.
    """
    try:
        trt: Any = import_module("tensorrt_rtx")
    except Exception as error:
        raise BackendError(f"tensorrt-rtx: {type(error).__name__}: {error}; pip install 'rfc-fx[tensorrt-rtx]'") from error
    name = f"SM{compute_capability.replace('.', '')}"
    if not hasattr(trt.ComputeCapability, name):
        known = ", ".join(field for field in dir(trt.ComputeCapability) if field.startswith("SM"))
        raise BackendError(f"tensorrt-rtx {trt.__version__}: expected a compute capability of {known}, got {name}")
    said: list[str] = []

    class Errors(trt.ILogger):  # type: ignore[misc]
        """Keeps what the builder says of the layer that it cannot build."""

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                said.append(text)

    logger = Errors()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        return "; ".join(f"{error.node_name()}: {error.desc()}" for error in errors) or "the parser gave no reason"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return "; ".join(said) or "the builder gave no reason"
    return int(engine.nbytes)
