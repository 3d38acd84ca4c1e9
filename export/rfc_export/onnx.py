"""ONNX: one model for each program, run by ONNX Runtime. State goes in and comes out; weights are external data, stored once.

The weights of every model lie in weights.safetensors: an ONNX file names the place of each inside it.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rfc_export.artifact import WEIGHTS, Manifest, ProgramSpec
from rfc_export.backends import Built, Report, Run
from rfc_export.errors import ArtifactError, BackendError, ExportError
from rfc_export.methods import dtype_of
from rfc_export.portable import Portable

WRITES: Literal["in_place", "returned"] = "returned"
POOLS = False

OPSET = 20
"""Opset 23 makes attention one node, which TensorRT cannot build in float32 nor inside `If`."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def check(device: torch.device) -> None:
    """BackendError where onnx, onnxscript or ONNX Runtime is missing or broken, or has no provider for the device."""
    runtime = _imported()
    if PROVIDERS[device.type] not in runtime.get_available_providers():
        raise BackendError(
            f"onnx: this onnxruntime has {', '.join(runtime.get_available_providers())}, none for {device.type}; "
            "pip install 'rfc-fx[onnx-gpu]' in an environment without [onnx]: the two exclude each other"
        )


def _imported() -> Any:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except Exception as error:  # a broken installation raises what it likes
        raise BackendError(
            f"onnx: {type(error).__name__}: {error}; pip install 'rfc-fx[onnx]', or 'rfc-fx[onnx-gpu]' for CUDA (they exclude each other)"
        ) from error
    for module in (onnx, onnxscript):
        assert module
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendError(
            "onnx: onnxruntime is broken, as when onnxruntime and onnxruntime-gpu were both installed; reinstall one of them"
        )
    return onnxruntime


def versions() -> dict[str, str]:
    """Versions of what wrote the models and what ran them first."""
    found = {}
    for name in ("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"opset": str(OPSET)}


# ---- building --------------------------------------------------------------------------------------------------------


def build(
    programs: Mapping[str, Portable], weights: Mapping[str, Tensor], folder: Path, device: torch.device, report: Report
) -> dict[str, Built]:
    """Write `<phase>.onnx` for every program, check it, and point its weights at weights.safetensors."""
    places = safetensors_places(folder / WEIGHTS)
    built = {}
    for phase, program in programs.items():
        report(f"exporting {phase}")
        name = f"{phase.lower()}.onnx"
        _write(program, folder / name, places)
        built[phase] = Built(name, phase)
    return built


def safetensors_places(path: Path) -> dict[str, tuple[int, int]]:
    """(offset, length) of every tensor in a safetensors file."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    places = ((name, entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__")
    return {name: (8 + length + begin, end - begin) for name, (begin, end) in places}


def input_name(kind: str, name: str) -> str:
    """Name of an input in an ONNX model."""
    return f"{kind}:{name}"


def output_name(kind: str, name: str) -> str:
    """Name of an output in an ONNX model; new state is not named as the old."""
    return f"{kind}:{name}"


def _write(program: Portable, path: Path, places: Mapping[str, tuple[int, int]]) -> None:
    import onnx

    model = _exported(program)
    graph = model.graph
    taken = {name: input_name(spec.kind, spec.name) for name, spec in zip((one.name for one in graph.input), program.inputs, strict=True)}
    if len(graph.output) != len(program.outputs):
        raise ExportError(
            f"export: {program.phase} has {len(graph.output)} outputs as ONNX, {len(program.outputs)} are needed: state would be lost; "
            "please report this"
        )
    _rename(graph, taken)
    _name_outputs(graph, [output_name(spec.kind, spec.name) for spec in program.outputs])
    _externalize(graph, program.weights, places)
    model.metadata_props.add(key="rfc.phase", value=program.phase)
    model.metadata_props.add(key="rfc.state", value=json.dumps([spec.name for spec in program.outputs if spec.kind == "next"]))
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def _exported(program: Portable) -> Any:
    with torch.no_grad(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        exported = torch.export.export(program.module, program.examples, strict=False)
        if exported.graph_signature.buffers_to_mutate or exported.graph_signature.user_inputs_to_mutate:
            raise ExportError(f"export: {program.phase} writes in place; ONNX would freeze that state; please report this")
        converted: Any = torch.onnx.export(exported, (), dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    return converted.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give graph inputs other names, in sub-graphs too."""
    for value in graph.input:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in names:
                node.input[i] = names[name]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                _rename(inner, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Give graph outputs these names, each from a node of its own: a value may leave twice, or be an input."""
    import onnx

    for value, name in zip(graph.output, names, strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
        value.name = name


def _externalize(graph: Any, weights: Mapping[str, str], places: Mapping[str, tuple[int, int]]) -> None:
    """Let every initializer that is a weight point into weights.safetensors."""
    import onnx

    for tensor in graph.initializer:
        place = places.get(weights.get(tensor.name, ""))
        if place is None:
            continue
        offset, length = place
        tensor.ClearField("raw_data")
        for repeated in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(repeated)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)


# ---- running ---------------------------------------------------------------------------------------------------------


def open(folder: Path, manifest: Manifest, weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Run]:
    """A session for every program; weights in memory once, shared. BackendError where a part would run elsewhere than asked."""
    runtime = _imported()
    shared = {name: _value(tensor) for name, tensor in weights.items()}
    return {phase: _session(runtime, folder, spec, shared, device) for phase, spec in manifest.programs.items()}


def _session(runtime: Any, folder: Path, spec: ProgramSpec, shared: Mapping[str, Any], device: torch.device) -> Run:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if device.type == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        runtime.preload_dlls()
    for name, weight in spec.weights.items():
        options.add_initializer(name, shared[weight])
    provider: Any = PROVIDERS[device.type]
    try:
        session = runtime.InferenceSession(str(folder / spec.file), options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base class
        raise ArtifactError(f"{folder / spec.file}: ONNX Runtime cannot open it: {str(error)[:300]}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(f"onnx: asked for {provider}, ONNX Runtime fell back to {', '.join(session.get_providers())}")
    names = [one.name for one in session.get_inputs()]
    return _Session(session, spec, frozenset(names), device, shared)


@dataclass
class _Session:
    """A program in a session: inputs and outputs are bound to torch's memory, nothing is copied on the way."""

    session: Any
    spec: ProgramSpec
    takes: frozenset[str]
    device: torch.device
    shared: Mapping[str, Any] = field(repr=False)

    def __call__(self, inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        binding = self.session.io_binding()
        held = []
        for spec, tensor in zip(self.spec.inputs, inputs, strict=True):
            name = input_name(spec.kind, spec.name)
            if name in self.takes:
                held.append(whole := tensor.contiguous())
                binding.bind_input(name, *_memory(whole))
        returned = []
        for place, spec in enumerate(self.spec.outputs):
            given = into.get(place)
            if given is None:
                given = torch.empty(spec.shape, dtype=dtype_of(spec.name, spec.dtype), device=self.device)
                returned.append(given)
            binding.bind_output(output_name(spec.kind, spec.name), *_memory(given))
        if self.device.type == "cuda":
            binding.synchronize_inputs()
        self.session.run_with_iobinding(binding)
        if self.device.type == "cuda":
            binding.synchronize_outputs()
        return returned


def _element_type(dtype: torch.dtype) -> int:
    """The number that ONNX has for a type."""
    import onnx

    names = {
        torch.float32: "FLOAT",
        torch.float64: "DOUBLE",
        torch.float16: "FLOAT16",
        torch.bfloat16: "BFLOAT16",
        torch.float8_e4m3fn: "FLOAT8E4M3FN",
        torch.int64: "INT64",
        torch.int32: "INT32",
        torch.int16: "INT16",
        torch.int8: "INT8",
        torch.uint8: "UINT8",
        torch.bool: "BOOL",
    }
    return int(onnx.TensorProto.DataType.Value(names[dtype]))


def _memory(tensor: Tensor) -> tuple[str, int, int, list[int], int]:
    """What IOBinding wants to know of a tensor: device, its number, element type, shape, address."""
    return tensor.device.type, tensor.device.index or 0, _element_type(tensor.dtype), list(tensor.shape), tensor.data_ptr()


def _value(tensor: Tensor) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.from_dlpack(tensor.detach().contiguous())
