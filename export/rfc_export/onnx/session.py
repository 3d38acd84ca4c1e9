"""Run ONNX models: a session for every program, bound to torch's memory; weights are torch's, in memory once."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfc_export.backends import Run
from rfc_export.errors import ArtifactError, BackendError, short
from rfc_export.manifest import Manifest
from rfc_export.methods import dtype_of
from rfc_export.onnx.declared import ELEMENT_TYPES, checked_weights
from rfc_export.onnx.libraries import PROVIDERS, imported
from rfc_export.onnx.queue import Queue
from rfc_export.onnx.writer import value_name
from rfc_export.specs import ProgramSpec

RESHAPING = ("TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider")
"""Optimizers that give a weight another shape under its own name, while sessions read shared ones: AceStep's norm, (32) as (1, 32, 1)."""


def open(
    where: Path,
    contents: Mapping[str, bytes],
    programs: Mapping[str, ProgramSpec],
    manifest: Manifest,
    weights: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Run]:
    """A session for every program of one call; the weights are those of torch, in memory once.

    BackendError where the device has no kernel for a part, or ONNX Runtime would run it elsewhere; ArtifactError for what is no program.
    """
    runtime = imported("onnxruntime", "InferenceSession")
    own = {phase: checked_weights(str(where / spec.file), contents[spec.file], spec, manifest.weights) for phase, spec in programs.items()}
    if device.type == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    shared = {name: _shared(runtime, weights[name]) for name in {name: None for there in own.values() for name in there.values()}}
    sessions: dict[str, Run] = {}
    queue = Queue(device)
    for phase, spec in programs.items():
        options = _options(runtime, own[phase], shared, weights, device)
        session = _session(runtime, where / spec.file, contents[spec.file], spec, options, queue)
        sessions[phase] = OnnxSession(session, spec, shared, queue, queue.options(runtime))
    return sessions


def _shared(runtime: Any, weight: Tensor) -> Any:
    """The weight as ONNX Runtime takes it, in the same memory; of types that DLPack does not carry there, a copy on the CPU."""
    if weight.dtype == torch.bool:
        return runtime.OrtValue.ortvalue_from_numpy(weight.cpu().numpy())
    if weight.dtype == torch.float8_e4m3fn:
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(weight.cpu().view(torch.uint8).numpy(), ELEMENT_TYPES[weight.dtype])
    return runtime.OrtValue.from_dlpack(weight.detach())


def _session(runtime: Any, path: Path, program: bytes, spec: ProgramSpec, options: Any, queue: Queue) -> Any:
    provider = PROVIDERS[queue.device.type]
    try:
        session = runtime.InferenceSession(program, options, providers=queue.providers)
    except Exception as error:  # onnxruntime's errors share no base class
        if type(error).__name__ == "NotImplemented" or "fallback to CPU EP has been explicitly disabled" in str(error):
            raise BackendError(
                f"onnx: {provider} has no kernel for a part of {spec.entry}: {short(error)}; export with backend='aoti', or a model and "
                "state in a type it computes in"
            ) from error
        raise ArtifactError(f"{path}: ONNX Runtime cannot open it: {short(error)}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(f"onnx: asked for {provider}, ONNX Runtime fell back to {', '.join(session.get_providers())}")
    for which, values, specs, must_have_all in (
        ("inputs", session.get_inputs(), spec.inputs, False),  # ONNX drops inputs that nothing reads
        ("outputs", session.get_outputs(), spec.outputs, True),
    ):
        shapes, expected = {value.name: value.shape for value in values}, {value_name(tensor): tensor.shape for tensor in specs}
        if wrong := [name for name in shapes | (expected if must_have_all else {}) if shapes.get(name) != expected.get(name)]:
            raise ArtifactError(
                f"{path}: its {which} are not those of {spec.entry}: {wrong[0]} has shape {shapes.get(wrong[0])}, expected "
                f"{expected.get(wrong[0])}; it is another program, export again"
            )
    return session


def _options(runtime: Any, own: Mapping[str, str], shared: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device) -> Any:
    """Options of a session whose program has the weights `own`: {name there: name in `shared` and `weights`}."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # programs take turns; their idle threads shall not compete
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights would be a second copy of each
    options.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(RESHAPING))
    if device.type == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    on_host = device.type == "cpu"
    read = [shared[name] if on_host else _shared(runtime, weights[name].cpu()) for name in own.values()]
    options.add_external_initializers(list(own), read)  # what the optimizer reads while it opens the program; no file is looked for
    for name, weight in own.items():
        options.add_initializer(name, shared[weight])  # what the session reads, where it lies
    return options


class OnnxSession:
    """A program in a session: inputs and outputs are bound to torch's memory, nothing is copied on the way."""

    def __init__(self, session: Any, spec: ProgramSpec, shared: Mapping[str, Any], queue: Queue, options: Any) -> None:
        self.session, self.spec, self.device = session, spec, queue.device
        self._queue, self._options = queue, options
        self.shared = shared  # the session reads weights where these lie
        names = {value.name for value in session.get_inputs()}
        self._inputs = [(index, value_name(tensor)) for index, tensor in enumerate(spec.inputs) if value_name(tensor) in names]
        self._outputs = [(value_name(tensor), tensor.shape, dtype_of(tensor.name, tensor.dtype)) for tensor in spec.outputs]
        self._binding, self._spare = session.io_binding(), torch.empty(1, device=self.device)
        self._bound: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        outputs = [
            into[index] if index in into else torch.empty(shape, dtype=dtype, device=self.device)
            for index, (_, shape, dtype) in enumerate(self._outputs)
        ]
        with self._lock:  # a binding is one call's; threads take turns
            for index, name in self._inputs:
                if self._moved(name, inputs[index]):
                    self._binding.bind_input(name, *_memory(inputs[index], self._spare))
            for (name, _, _), tensor in zip(self._outputs, outputs, strict=True):
                if self._moved(name, tensor):
                    self._binding.bind_output(name, *_memory(tensor, self._spare))
            with self._queue.turn():
                self.session.run_with_iobinding(self._binding, self._options)
        return [tensor for index, tensor in enumerate(outputs) if index not in into]

    def _moved(self, name: str, tensor: Tensor) -> bool:
        """Whether the tensor lies elsewhere than in the last call; programs have fixed shapes, so that an address says all."""
        address = tensor.data_ptr()
        if self._bound.get(name) == address:
            return False
        self._bound[name] = address
        return True


def _memory(tensor: Tensor, spare: Tensor) -> tuple[str, int, int, list[int], int]:
    """What IOBinding wants to know of a tensor: device, its number, element type, shape, address.

    A tensor without elements has the address 0, which IOBinding refuses: it gets that of `spare`, where nothing is read or written.
    """
    address = tensor.data_ptr() if tensor.numel() else spare.data_ptr()
    return tensor.device.type, tensor.device.index or 0, ELEMENT_TYPES[tensor.dtype], list(tensor.shape), address
