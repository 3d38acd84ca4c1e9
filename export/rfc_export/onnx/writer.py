"""Write programs as ONNX models whose weights are offsets into weights.safetensors."""

from __future__ import annotations

import json
import logging
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfc_export.backends import Built, Report
from rfc_export.errors import BackendError, ExportError, short
from rfc_export.manifest import WEIGHTS
from rfc_export.onnx.attention import attend_in_float32
from rfc_export.onnx.libraries import OPSET, WIDENING, imported
from rfc_export.onnx.optimizer import optimize
from rfc_export.onnx.registry import read_once
from rfc_export.portable import STEP, Portable
from rfc_export.specs import ProgramSpec, TensorSpec

MOST_FOLDED = 1024
"""Elements of a constant that is computed at export, at most; larger ones are cheap to recompute, or weights in another form."""

MOST_INDICES = 64
"""Elements of an integer constant that stays in the file, at most: shape inference reads the limits of slices, but no other file."""

MOST_INSIDE = 1 << 20
"""Bytes of constants in an ONNX file, at most: everything larger is a weight."""


def build(
    programs: Mapping[str, Portable],
    weights: Mapping[str, Tensor],
    folder: Path,
    device: torch.device,
    report: Report,
    suffix: str = "",
) -> dict[str, Built]:
    """Write `<phase><suffix>.onnx` for every program, its weights pointing into weights.safetensors, and check it."""
    for library, needed in (("onnx", "checker"), ("onnx_ir", "save"), ("onnxscript", "opset20")):
        imported(library, needed)
    offsets = safetensors_offsets(folder / WEIGHTS)
    built = {}
    for phase, program in programs.items():
        report(f"exporting {phase}")
        name = f"{phase.lower()}{suffix}.onnx"
        _write(program, folder / name, offsets, device)
        built[phase] = Built(name, phase)
    return built


def relocate(folder: Path, programs: Sequence[ProgramSpec]) -> None:
    """Let models that lie in `folder` point to where their weights lie in weights.safetensors now."""
    onnx = imported("onnx", "ModelProto")
    offsets = safetensors_offsets(folder / WEIGHTS)
    for spec in programs:
        model = onnx.ModelProto.FromString((folder / spec.file).read_bytes())
        for tensor in model.graph.initializer:
            if tensor.name in spec.weights and len(tensor.external_data):
                place = dict(zip(("offset", "length"), map(str, offsets[spec.weights[tensor.name]]), strict=True))
                for entry in tensor.external_data:
                    entry.value = place.get(entry.key, entry.value)
        (folder / spec.file).write_bytes(model.SerializeToString())


def safetensors_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """(offset, length) of every tensor in a safetensors file."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    spans = ((name, entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__")
    return {name: (8 + length + begin, end - begin) for name, (begin, end) in spans}


def value_name(spec: TensorSpec) -> str:
    """Name of an input or output in an ONNX model; new state (`next:`) is not named as the old."""
    return f"{spec.kind}:{spec.name}"


def _write(program: Portable, path: Path, offsets: Mapping[str, tuple[int, int]], device: torch.device) -> None:
    import onnx
    import onnx_ir as ir

    model = _exported(program, widens=device.type in WIDENING)
    graph = model.graph
    if len(graph.inputs) != len(program.inputs) or len(graph.outputs) != len(program.outputs):
        raise ExportError(
            f"export: {program.phase} as ONNX has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, expected "
            f"{len(program.inputs)} and {len(program.outputs)}: state would be lost; please report this"
        )
    for value, spec in zip(graph.inputs, program.inputs, strict=True):
        value.name = value_name(spec)
    for index, (value, spec) in enumerate(zip(graph.outputs, program.outputs, strict=True)):
        graph.append(node := ir.node("Identity", [value]))  # of its own: a value may leave twice, or be an input
        out = node.outputs[0]
        out.name, out.type, out.shape = value_name(spec), value.type, value.shape
        graph.outputs[index] = out
    _externalize(program, graph, offsets)
    model.metadata_props["rfc.phase"] = program.phase
    model.metadata_props["rfc.state"] = json.dumps([spec.name for spec in program.outputs if spec.kind == "next"])
    ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # of several classes without a common base
        raise BackendError(
            f"onnx: {program.phase} is no valid model of opset {OPSET}: {short(error)}; export with backend='aoti', or, where it "
            "names a type, model and state in another"
        ) from error


def _exported(program: Portable, widens: bool) -> Any:
    """The program as a model of onnx_ir, weights by name and not yet written anywhere."""
    import onnx_ir.passes.common as passes

    def folds(node: Any) -> bool | None:
        """False for a node that reads a weight: its result would be a second copy of the weight in the file."""
        reads_weight = any(value is not None and value.is_initializer() and value.name in program.weights for value in node.inputs)
        return False if reads_weight else None

    with torch.no_grad(), warnings.catch_warnings(), _quiet(), read_once():
        warnings.simplefilter("ignore")
        # not strict, torch.cond would be traced apart from the rest, its shapes taken to be dynamic
        exported = torch.export.export(program.module, program.examples, strict=program.phase == STEP)
        if widens:
            attend_in_float32(exported.graph_module)
        translations: Any = {torch.ops.aten.linear.default: _linear, torch.ops.aten.squeeze.dim: _squeeze}
        converted: Any = torch.onnx.export(
            exported, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False, custom_translation_table=translations
        )
        signature = converted.exported_program.graph_signature
        if frozen := {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}:
            raise ExportError(
                f"export: {program.phase} writes {', '.join(map(str, frozen.values()))} in place; ONNX would freeze it; please report this"
            )
        optimize(converted.model, folds, MOST_FOLDED, widens)
        passes.ClearMetadataAndDocStringPass()(converted.model)
    return converted.model


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """aten.linear with the weight as it lies in the file: a transposed one would be a second copy, in the file or in the session."""
    from onnxscript import opset20 as op

    *outer, width = x.shape
    flat = x if len(outer) == 1 else op.Reshape(x, op.Constant(value_ints=[-1, width]))
    product = op.Gemm(flat, weight, transB=1) if bias is None else op.Gemm(flat, weight, bias, transB=1)
    return product if len(outer) == 1 else op.Reshape(product, op.Constant(value_ints=[*outer, weight.shape[0]]))


def _squeeze(x: Any, dim: int) -> Any:
    """aten.squeeze.dim, which leaves an axis that is longer than 1; the exporter's own makes an invalid model of that."""
    from onnxscript import opset20 as op

    return op.Squeeze(x, op.Constant(value_ints=[dim])) if len(x.shape) and x.shape[dim] == 1 else op.Identity(x)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's word on operators of packages that are not installed, and on lists that are empty."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _externalize(program: Portable, graph: Any, offsets: Mapping[str, tuple[int, int]]) -> None:
    """Let every initializer that is a weight point into weights.safetensors; ExportError where much else would be in the file."""
    import onnx_ir as ir

    inside: dict[str, int] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor.size <= MOST_INDICES and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and name in program.weights:
            graph.initializers.pop(name)
            value.name = f"inside.{name}"  # no weight of the artefact's any more
            graph.initializers.add(value)
            continue
        span = offsets.get(program.weights.get(name, ""))
        if span is None:
            inside[name] = tensor.nbytes
            continue
        offset, length = span
        value.const_value = ir.ExternalTensor(WEIGHTS, offset, length, tensor.dtype, shape=tensor.shape, name=name, base_dir="")
    if sum(inside.values()) > MOST_INSIDE:
        largest = sorted(inside, key=lambda name: -inside[name])[:3]
        raise ExportError(
            f"export: {program.phase} as ONNX holds {sum(inside.values()) / 2**20:.1f} MiB that are no weights of the model "
            f"({', '.join(largest)}), at most {MOST_INSIDE / 2**20:g} MiB are expected: weights were folded; please report this"
        )
