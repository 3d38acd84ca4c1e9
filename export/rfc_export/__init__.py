"""Artefacts of cached models: the engines AOTInductor, ONNX Runtime and TensorRT will live here; nothing is exported yet."""
