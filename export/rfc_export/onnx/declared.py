"""Weights as an ONNX model declares them, held against the manifest: ONNX Runtime takes the memory of a weight for what the graph says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rfc_export.errors import ArtifactError, short
from rfc_export.methods import name_of
from rfc_export.onnx.libraries import imported
from rfc_export.specs import ProgramSpec, WeightSpec
from rfc_export.weights import declared_as

ELEMENT_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
}
"""The numbers that ONNX has for types (TensorProto.DataType)."""

MOST_GRAPHS = 100_000
"""Graphs inside a model, at most."""


def checked_weights(where: str, program: bytes, spec: ProgramSpec, weights: Mapping[str, WeightSpec]) -> dict[str, str]:
    """The weights that the model has, {name there: name in the artefact}; ArtifactError where one is of another type or shape than
    the manifest's, or where the model reads anything else outside of its file.
    """
    onnx = imported("onnx", "ModelProto")
    try:
        model = onnx.ModelProto.FromString(program)
    except Exception as error:  # protobuf's own classes
        raise ArtifactError(f"{where}: no ONNX model: {short(error)}; copy the artefact again") from error
    names = {number: name_of(dtype) for dtype, number in ELEMENT_TYPES.items()}
    own = {tensor.name: tensor for tensor in model.graph.initializer}
    there = {name: stored for name, stored in spec.weights.items() if name in own}
    for name, stored in there.items():
        declared_as(where, name, (names.get(own[name].data_type, "unknown"), list(own[name].dims)), weights[stored])
    for tensor, is_outermost in _tensors(model):
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data)
        if outside and not (is_outermost and tensor.name in spec.weights):
            raise ArtifactError(
                f"{where}: {tensor.name or 'a constant'} lies in another file, but is none of the program's weights; export again"
            )
    return there


def _tensors(model: Any) -> Iterator[tuple[Any, bool]]:
    """Every tensor of the model, in whatever graph or function, and whether it is one of the model's own initializers."""
    graphs: list[Any] = [model.graph, *model.functions]
    for count, graph in enumerate(graphs):
        if count > MOST_GRAPHS:
            return
        for tensor in getattr(graph, "initializer", ()):
            yield tensor, count == 0
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from ((sparse.values, False), (sparse.indices, False))
        for node in graph.node:
            for attribute in node.attribute:
                yield from ((tensor, False) for tensor in (attribute.t, *attribute.tensors))
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
