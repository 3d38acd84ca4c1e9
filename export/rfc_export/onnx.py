"""ONNX: one model for each program, run by ONNX Runtime. State goes in and comes out; weights are external data, stored once.

The weights of every model lie in weights.safetensors: an ONNX file names the place of each inside it.
"""

from __future__ import annotations

import json
import logging
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rfc_export.backends import Built, Report, Run
from rfc_export.errors import ArtifactError, BackendError, ExportError
from rfc_export.manifest import WEIGHTS, Manifest, ProgramSpec, TensorSpec
from rfc_export.methods import dtype_of
from rfc_export.portable import STEP, Portable

WRITES: Literal["in_place", "returned"] = "returned"
POOLS = False

OPSET = 20
"""Opset 23 makes attention one node, which TensorRT cannot build in float32 nor inside `If`."""

MOST_FOLDED = 1024
"""Elements of a constant that is computed at export, at most; larger ones are cheap to make anew, or weights in another form."""

MOST_INSIDE = 1 << 20
"""Bytes in an ONNX file that are no weights of the model, at most."""

LEFT_IN_FILE = (torch.bool, torch.float8_e4m3fn)
"""Types of weights that ONNX Runtime reads from weights.safetensors itself: it takes them from no other library."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def check(device: torch.device) -> None:
    """BackendError where ONNX Runtime is missing or broken, or has no provider for the device; onnx itself is needed to build (`build`)."""
    providers = _imported("onnxruntime", "InferenceSession").get_available_providers()
    if PROVIDERS.get(device.type) not in providers:
        raise BackendError(
            f"onnx: this onnxruntime has {', '.join(providers)}, none for {device.type}; "
            "pip install 'rfc-fx[onnx-gpu]' in an environment without [onnx]: the two exclude each other"
        )


def _imported(name: str, needed: str) -> Any:
    """The module of that name; BackendError where it is missing, broken, or lacks what is needed of it."""
    try:
        module = import_module(name)
    except Exception as error:  # a broken installation raises what it likes
        raise BackendError(
            f"onnx: {type(error).__name__}: {error}; pip install 'rfc-fx[onnx]', or 'rfc-fx[onnx-gpu]' for CUDA (they exclude each other)"
        ) from error
    if not hasattr(module, needed):
        raise BackendError(
            f"onnx: {name} is broken, it has no {needed}, as when onnxruntime and onnxruntime-gpu were both installed; "
            "reinstall one of them"
        )
    return module


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
    """Write `<phase>.onnx` for every program, its weights pointing into weights.safetensors, and check it."""
    for library, needed in (("onnx", "checker"), ("onnx_ir", "save"), ("onnxscript", "opset20")):
        _imported(library, needed)
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


def value_name(spec: TensorSpec) -> str:
    """Name of an input or output in an ONNX model; new state (`next:`) is not named as the old."""
    return f"{spec.kind}:{spec.name}"


def _write(program: Portable, path: Path, places: Mapping[str, tuple[int, int]]) -> None:
    import onnx
    import onnx_ir as ir

    model = _exported(program)
    graph = model.graph
    if len(graph.inputs) != len(program.inputs) or len(graph.outputs) != len(program.outputs):
        raise ExportError(
            f"export: {program.phase} as ONNX has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, expected "
            f"{len(program.inputs)} and {len(program.outputs)}: state would be lost; please report this"
        )
    for value, spec in zip(graph.inputs, program.inputs, strict=True):
        value.name = value_name(spec)
    for place, (value, spec) in enumerate(zip(graph.outputs, program.outputs, strict=True)):
        graph.append(node := ir.node("Identity", [value]))  # of its own: a value may leave twice, or be an input
        out = node.outputs[0]
        out.name, out.type, out.shape = value_name(spec), value.type, value.shape
        graph.outputs[place] = out
    _externalize(program, graph, places)
    model.metadata_props["rfc.phase"] = program.phase
    model.metadata_props["rfc.state"] = json.dumps([spec.name for spec in program.outputs if spec.kind == "next"])
    ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # of several classes without a common base
        raise BackendError(
            f"onnx: {program.phase} is no valid model of opset {OPSET}: {_short(error)}; where it names a type, export model and state "
            "in another (float32 fits everywhere)"
        ) from error


def _exported(program: Portable) -> Any:
    """The program as a model of onnx_ir, weights by name and not yet written anywhere."""
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import optimize_ir

    def folds(node: Any) -> bool | None:
        """Not what reads a weight: the result would be a second copy of it in the file."""
        weighs = any(one is not None and one.is_initializer() and one.name in program.weights for one in node.inputs)
        return False if weighs else None

    with torch.no_grad(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        # not strict, torch.cond would be traced apart from the rest, its shapes taken to be dynamic
        exported = torch.export.export(program.module, program.examples, strict=program.phase == STEP)
        translations: Any = {torch.ops.aten.linear.default: _linear, torch.ops.aten.squeeze.dim: _squeeze}
        converted: Any = torch.onnx.export(
            exported, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False, custom_translation_table=translations
        )
        signature = converted.exported_program.graph_signature
        if frozen := {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}:
            raise ExportError(
                f"export: {program.phase} writes {', '.join(map(str, frozen.values()))} in place; ONNX would freeze it; please report this"
            )
        optimize_ir(converted.model, should_fold=folds, output_size_limit=MOST_FOLDED)
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


def _externalize(program: Portable, graph: Any, places: Mapping[str, tuple[int, int]]) -> None:
    """Let every initializer that is a weight point into weights.safetensors; ExportError where much else would be in the file."""
    import onnx_ir as ir

    inside: dict[str, int] = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        place = places.get(program.weights.get(name, ""))
        if place is None:
            inside[name] = tensor.nbytes
            continue
        offset, length = place
        value.const_value = ir.ExternalTensor(WEIGHTS, offset, length, tensor.dtype, shape=tensor.shape, name=name, base_dir="")
    if sum(inside.values()) > MOST_INSIDE:
        largest = sorted(inside, key=lambda name: -inside[name])[:3]
        raise ExportError(
            f"export: {program.phase} as ONNX holds {sum(inside.values()) / 2**20:.1f} MiB that are no weights of the model "
            f"({', '.join(largest)}), at most {MOST_INSIDE / 2**20:g} MiB are expected: weights were folded; please report this"
        )


# ---- running ---------------------------------------------------------------------------------------------------------


def open(folder: Path, manifest: Manifest, weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Run]:
    """A session for every program; the weights are those of torch, in memory once.

    BackendError where the device has no kernel for a part, or ONNX Runtime would run it elsewhere; ArtifactError for what is no program.
    """
    runtime = _imported("onnxruntime", "InferenceSession")
    read = {name: None for program in manifest.programs.values() for name in program.weights.values()}
    if lost := [name for name in read if name not in weights]:
        raise ArtifactError(f"{folder / WEIGHTS}: {', '.join(lost[:3])} missing; export again")
    if device.type == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    shared = {name: runtime.OrtValue.from_dlpack(weights[name].detach()) for name in read if weights[name].dtype not in LEFT_IN_FILE}
    return {
        phase: _Session(_session(runtime, folder, spec, shared, device), spec, device, shared) for phase, spec in manifest.programs.items()
    }


def _session(runtime: Any, folder: Path, spec: ProgramSpec, shared: Mapping[str, Any], device: torch.device) -> Any:
    provider = PROVIDERS[device.type]
    path = folder / spec.file
    try:
        session = runtime.InferenceSession(str(path), _options(runtime, spec, shared, device), providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base class
        if type(error).__name__ == "NotImplemented" or "fallback to CPU EP has been explicitly disabled" in str(error):
            raise BackendError(
                f"onnx: {provider} has no kernel for a part of {spec.entry}: {_short(error)}; export a model and state in another type "
                "(float32 runs everywhere), or for another device"
            ) from error
        raise ArtifactError(f"{path}: ONNX Runtime cannot open it: {_short(error)}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(f"onnx: asked for {provider}, ONNX Runtime fell back to {', '.join(session.get_providers())}")
    for which, found, specs, all_of in (
        ("inputs", session.get_inputs(), spec.inputs, False),
        ("outputs", session.get_outputs(), spec.outputs, True),
    ):
        shapes, wanted = {one.name: one.shape for one in found}, {value_name(one): one.shape for one in specs}
        if strange := [name for name in shapes | (wanted if all_of else {}) if shapes.get(name) != wanted.get(name)]:
            raise ArtifactError(
                f"{path}: its {which} are not those of {spec.entry}: {strange[0]} has shape {shapes.get(strange[0])}, expected "
                f"{wanted.get(strange[0])}; it is another program, export again"
            )
    return session


def _options(runtime: Any, spec: ProgramSpec, shared: Mapping[str, Any], device: torch.device) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # programs take turns; their idle threads shall not compete
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights would be a second copy of each
    if device.type == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, weight in spec.weights.items():
        if weight in shared:
            options.add_initializer(name, shared[weight])
    return options


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:297] + "..."


class _Session:
    """A program in a session: inputs and outputs are bound to torch's memory, nothing is copied on the way."""

    def __init__(self, session: Any, spec: ProgramSpec, device: torch.device, shared: Mapping[str, Any]) -> None:
        self.session, self.spec, self.device = session, spec, device
        self.shared = shared  # the session reads weights where these lie
        takes = {one.name for one in session.get_inputs()}
        self._takes = [(place, value_name(one)) for place, one in enumerate(spec.inputs) if value_name(one) in takes]
        self._gives = [(value_name(one), one.shape, dtype_of(one.name, one.dtype)) for one in spec.outputs]
        self._binding = session.io_binding()
        self._bound: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        outputs = [
            into[place] if place in into else torch.empty(shape, dtype=dtype, device=self.device)
            for place, (_, shape, dtype) in enumerate(self._gives)
        ]
        with self._lock:  # a binding is one call's; threads take turns
            for place, name in self._takes:
                if self._moved(name, inputs[place]):
                    self._binding.bind_input(name, *_memory(inputs[place]))
            for (name, _, _), tensor in zip(self._gives, outputs, strict=True):
                if self._moved(name, tensor):
                    self._binding.bind_output(name, *_memory(tensor))
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()  # ONNX Runtime has a stream of its own
            self.session.run_with_iobinding(self._binding)
            if self.device.type == "cuda":
                self._binding.synchronize_outputs()
        return [tensor for place, tensor in enumerate(outputs) if place not in into]

    def _moved(self, name: str, tensor: Tensor) -> bool:
        """Whether the tensor lies elsewhere than in the last call; programs have fixed shapes, so that an address says all."""
        address = tensor.data_ptr()
        if self._bound.get(name) == address:
            return False
        self._bound[name] = address
        return True


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


def _memory(tensor: Tensor) -> tuple[str, int, int, list[int], int]:
    """What IOBinding wants to know of a tensor: device, its number, element type, shape, address."""
    return tensor.device.type, tensor.device.index or 0, ELEMENT_TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr()
