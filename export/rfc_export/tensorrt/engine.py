"""Open engines and run them on torch's memory, replayed as CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfc_export.backends import Run
from rfc_export.errors import ArtifactError, BackendError, TargetError
from rfc_export.manifest import Manifest
from rfc_export.methods import dtype_of
from rfc_export.specs import ProgramSpec, TensorSpec
from rfc_export.tensorrt.libraries import versions

MOST_GRAPHS = 16
"""CUDA graphs of a program, at most: two for each context, which writes the new state beside the old."""


def open(
    where: Path,
    contents: Mapping[str, bytes],
    programs: Mapping[str, ProgramSpec],
    manifest: Manifest,
    weights: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Run]:
    """An engine and an execution context for every program. TargetError for engines of another TensorRT, ArtifactError for no engines."""
    built, here = manifest.built_with.get("tensorrt"), versions().get("tensorrt")
    if built != here:
        raise TargetError(f"{where}: built with TensorRT {built}, this is {here}; install that one, or export again")
    trt = import_module("tensorrt")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    return {phase: _opened(trt, runtime, where / spec.file, contents[spec.file], spec, device) for phase, spec in programs.items()}


def _opened(trt: Any, runtime: Any, path: Path, content: bytes, spec: ProgramSpec, device: torch.device) -> Run:
    with torch.cuda.device(device):
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise ArtifactError(f"{path}: TensorRT cannot open it; export again on this machine")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        for which, tensors, specs in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
            shapes, expected = [list(engine.get_tensor_shape(name)) for name in tensors], [tensor.shape for tensor in specs]
            if shapes != expected:
                raise ArtifactError(f"{path}: the {which} of {spec.entry} have shapes {shapes}, expected {expected}; export again")
        return GraphedEngine(engine.create_execution_context(), inputs, outputs, spec, device)


class GraphedEngine:
    """An engine bound to torch's memory. Once it has run with a set of addresses it is replayed as a CUDA graph.

    State is read and written where it lies; what changes its place from call to call goes through buffers of the program's own.
    """

    def __init__(self, context: Any, inputs: list[str], outputs: list[str], spec: ProgramSpec, device: torch.device) -> None:
        self._context, self._names = context, (*inputs, *outputs)
        self._inputs = [None if tensor.kind == "state" else _empty(tensor, device) for tensor in spec.inputs]
        self._outputs = [None if tensor.kind == "next" else _empty(tensor, device) for tensor in spec.outputs]
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._device = device
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        with self._lock, torch.cuda.device(self._device):
            bound = []
            for tensor, buffer in zip(inputs, self._inputs, strict=True):
                bound.append(tensor if buffer is None else buffer.copy_(tensor))
            written = [into[index] if own is None else own for index, own in enumerate(self._outputs)]
            addresses = tuple(tensor.data_ptr() for tensor in (*bound, *written))
            if (graph := self._graphs.get(addresses)) is not None:
                graph.replay()
            else:
                self._capture(addresses)
            return [own.clone() for own in self._outputs if own is not None]  # the next call writes there again

    def _capture(self, addresses: tuple[int, ...]) -> None:
        """Run with new addresses, and record the run as a CUDA graph for later calls."""
        for name, address in zip(self._names, addresses, strict=True):
            self._context.set_tensor_address(name, address)
        self._enqueue()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._enqueue()
        while len(self._graphs) >= MOST_GRAPHS:
            self._graphs.pop(next(iter(self._graphs)))
        self._graphs[addresses] = graph

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise BackendError("tensorrt: an engine did not start; see TensorRT's own message above")


def _empty(spec: TensorSpec, device: torch.device) -> Tensor:
    return torch.empty(spec.shape, dtype=dtype_of(spec.name, spec.dtype), device=device)
