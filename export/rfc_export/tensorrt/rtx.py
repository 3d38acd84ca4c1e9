"""TensorRT-RTX as a check without a GPU: whether it builds the ONNX programs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from rfc_export.errors import BackendError


def build_with_rtx(path: str | Path, compute_capability: str = "8.9") -> int | str:
    """Build an ONNX program with TensorRT-RTX for a GPU that need not be there; return the engine's bytes, or why there is none.

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
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
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
    return "the builder gave no engine" if engine is None else int(engine.nbytes)
