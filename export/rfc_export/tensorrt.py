"""TensorRT: an engine for every program, built by torch-tensorrt: state goes in and comes out, in buffers that all engines share.

Not measured: TensorRT cannot be installed from the Python package index alone. What can be checked anywhere is that TensorRT-RTX builds
the ONNX programs (`build_with_rtx`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rfc_export.artifact import sha256
from rfc_export.backends import Built, Report, Run
from rfc_export.errors import ArtifactError, BackendError, ExportError, TargetError
from rfc_export.manifest import WEIGHTS, Manifest, ProgramSpec
from rfc_export.methods import dtype_of
from rfc_export.portable import STEP, Portable
from rfc_export.target import target_of

log = logging.getLogger("rfc_fx")

WRITES: Literal["in_place", "returned"] = "returned"
"""torch-tensorrt up to 2.13 takes buffers that are written for constants."""

POOLS = False

INSTALL = "pip install 'rfc-fx[tensorrt]' where NVIDIA's package index can be reached"

MOST_GRAPHS = 16
"""CUDA graphs of a program, at most: two for each context, which writes the new state beside the old."""


def check(device: torch.device) -> None:
    """BackendError with the reason where torch-tensorrt or TensorRT is missing or broken, or the device is no GPU."""
    found = installed("torch_tensorrt", "torch-tensorrt")
    _imported("torch_tensorrt", found)
    _imported("tensorrt", installed("tensorrt", "tensorrt"))
    if device.type != "cuda":
        raise BackendError(f"tensorrt: engines are built and run on a GPU, the model is on {device}; move it with .to('cuda')")


def installed(module: str, package: str) -> str:
    """Version of a package, found without importing it; BackendError where it is missing."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError) as error:
        raise BackendError(f"tensorrt: {package} cannot be looked up: {type(error).__name__}: {error}; {INSTALL}") from error
    if spec is None:
        raise BackendError(f"tensorrt: {package} is not installed; {INSTALL}")
    return _version(package) or "of unknown version"


def _imported(module: str, found: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # bare Exception, AssertionError, RuntimeError, OSError: whatever is missing
        reason = " ".join(str(error).split())
        raise BackendError(f"tensorrt: {module} {found} cannot be imported: {type(error).__name__}: {reason}; {INSTALL}") from error


def _version(package: str) -> str | None:
    for name in (package, f"{package}-cu13", f"{package}-cu12"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Versions of what built the engines; TensorRT opens its own version's only."""
    found = {name: _version(name) for name in ("torch-tensorrt", "tensorrt")}
    return {name: one for name, one in found.items() if one is not None}


# ---- building --------------------------------------------------------------------------------------------------------


def build(
    programs: Mapping[str, Portable], weights: Mapping[str, Tensor], folder: Path, device: torch.device, report: Report
) -> dict[str, Built]:
    """Write `<phase>.engine` for every program, from the user's cache where the same was built before.

    BackendError for `dispatch="cond"` and for what TensorRT cannot build; nothing is left to PyTorch.
    """
    if STEP in programs:
        raise BackendError("tensorrt: torch-tensorrt has no torch.cond and would run it in PyTorch; export with dispatch='host'")
    cache = cache_folder()
    stored = sha256(folder / WEIGHTS)
    gpu = target_of(device)
    built = {}
    for phase, program in programs.items():
        exported = _exported(program)
        key = cache_key(program, exported.graph_module.code, stored, versions(), [gpu.name, str(gpu.compute_capability)])
        kept = cache / f"{key}.engine"
        if kept.is_file():
            report(f"taking {phase} from {cache}")
            engine = kept.read_bytes()
        else:
            report(f"building {phase}")
            engine = _built(program, exported, cache / f"timing-{key_of([gpu.name, versions()])[:16]}.bin", device)
            _keep(kept, engine)
        name = f"{phase.lower()}.engine"
        (folder / name).write_bytes(engine)
        built[phase] = Built(name, phase)
    return built


def cache_folder() -> Path:
    """Where engines and timings are kept between exports: RFC_FX_CACHE, or the user's cache folder."""
    chosen = os.environ.get("RFC_FX_CACHE")
    root = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfc-fx"
    folder = root / "tensorrt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"tensorrt: {folder} cannot be made: {error.strerror or error}; set RFC_FX_CACHE to another folder") from error
    return folder


def cache_key(program: Portable, code: str, stored: str, built_by: Mapping[str, str], gpu: Sequence[str]) -> str:
    """What an engine depends on, as 64 hexadecimal digits: graph, shapes and types, weights, versions, GPU."""
    specs = [[spec.model_dump() for spec in specs] for specs in (program.inputs, program.outputs)]
    return key_of([code, specs, sorted(program.weights.items()), stored, dict(built_by), torch.__version__, list(gpu)])


def key_of(facts: Any) -> str:
    """SHA-256 of facts that JSON has words for."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, engine: bytes) -> None:
    """Write whole or not at all: another export may read it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".engine-", delete=False) as stream:
        stream.write(engine)
    os.replace(stream.name, path)


def _exported(program: Portable) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(program.module, program.examples, strict=False)
        signature = exported.run_decompositions().graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise ExportError(f"export: {program.phase} writes in place; TensorRT would freeze that state; please report this")
    return exported


def _built(program: Portable, exported: Any, timings: Path, device: torch.device) -> bytes:
    trt = import_module("torch_tensorrt")
    try:
        engine: bytes = trt.dynamo.convert_exported_program_to_serialized_trt_engine(
            exported,
            arg_inputs=list(program.examples),
            device=device,
            use_explicit_typing=True,
            require_full_compilation=True,
            min_block_size=1,
            immutable_weights=True,
            timing_cache_path=str(timings),
        )
    except Exception as error:  # its errors share no base class
        raise BackendError(
            f"tensorrt: {program.phase} cannot be built: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return bytes(engine)


# ---- running ---------------------------------------------------------------------------------------------------------


def open(folder: Path, manifest: Manifest, weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Run]:
    """An engine and an execution context for every program. TargetError for engines of another TensorRT, ArtifactError for no engines."""
    wanted, here = manifest.built_with.get("tensorrt"), versions().get("tensorrt")
    if wanted != here:
        raise TargetError(f"{folder}: built with TensorRT {wanted}, this is {here}; install that one, or export again")
    trt = import_module("tensorrt")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    return {phase: _opened(trt, runtime, folder, spec, device) for phase, spec in manifest.programs.items()}


def _opened(trt: Any, runtime: Any, folder: Path, spec: ProgramSpec, device: torch.device) -> Run:
    path = folder / spec.file
    with torch.cuda.device(device):
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ArtifactError(f"{path}: TensorRT cannot open it; export again on this machine")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        given = [name for name in names if name not in taken]
        for which, found, specs in (("inputs", taken, spec.inputs), ("outputs", given, spec.outputs)):
            shapes = [list(engine.get_tensor_shape(name)) for name in found]
            if shapes != [one.shape for one in specs]:
                raise ArtifactError(f"{path}: its {which} are not those of {spec.entry}: {len(found)}, expected {len(specs)}; export again")
        return Program(engine.create_execution_context(), taken, given, spec, device)


class Program:
    """An engine bound to torch's memory. Once it has run with a set of addresses it is replayed as a CUDA graph.

    State is read and written where it lies; what changes its place from call to call goes through buffers of the program's own.
    """

    def __init__(self, context: Any, taken: list[str], given: list[str], spec: ProgramSpec, device: torch.device) -> None:
        self._context, self._taken, self._given = context, taken, given
        self._inputs = [None if one.kind == "state" else _empty(one, device) for one in spec.inputs]
        self._outputs = [None if one.kind == "next" else _empty(one, device) for one in spec.outputs]
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._device = device
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        with self._lock, torch.cuda.device(self._device):
            bound = []
            for tensor, buffer in zip(inputs, self._inputs, strict=True):
                bound.append(tensor if buffer is None else buffer.copy_(tensor))
            written = [into[place] if own is None else own for place, own in enumerate(self._outputs)]
            addresses = tuple(tensor.data_ptr() for tensor in (*bound, *written))
            if (graph := self._graphs.get(addresses)) is not None:
                graph.replay()
            else:
                self._first(addresses)
            return [own.clone() for own in self._outputs if own is not None]  # the next call writes there again

    def _first(self, addresses: tuple[int, ...]) -> None:
        """Run with new addresses, and record the same for the calls to come."""
        for name, address in zip((*self._taken, *self._given), addresses, strict=True):
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


def _empty(spec: Any, device: torch.device) -> Tensor:
    return torch.empty(spec.shape, dtype=dtype_of(spec.name, spec.dtype), device=device)


# ---- a check without a GPU -------------------------------------------------------------------------------------------


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
        known = ", ".join(one for one in dir(trt.ComputeCapability) if one.startswith("SM"))
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
