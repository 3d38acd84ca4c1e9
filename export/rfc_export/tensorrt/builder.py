"""Build engines with torch-tensorrt, whole or not at all: nothing is left to PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfc_export.artifact import sha256
from rfc_export.backends import Built, Report
from rfc_export.errors import BackendError, ExportError
from rfc_export.manifest import WEIGHTS
from rfc_export.portable import STEP, Portable
from rfc_export.specs import ProgramSpec
from rfc_export.target import target_of
from rfc_export.tensorrt.cache import cache_folder, cache_key, key_of, store
from rfc_export.tensorrt.libraries import versions


def build(
    programs: Mapping[str, Portable],
    weights: Mapping[str, Tensor],
    folder: Path,
    device: torch.device,
    report: Report,
    suffix: str = "",
) -> dict[str, Built]:
    """Write `<phase><suffix>.engine` for every program, from the user's cache where the same was built before.

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
        cached = cache / f"{key}.engine"
        if cached.is_file():
            report(f"taking {phase} from {cache}")
            engine = cached.read_bytes()
        else:
            report(f"building {phase}")
            engine = _built(program, exported, cache / f"timing-{key_of([gpu.name, versions()])[:16]}.bin", device)
            store(cached, engine)
        name = f"{phase.lower()}{suffix}.engine"
        (folder / name).write_bytes(engine)
        built[phase] = Built(name, phase)
    return built


def relocate(folder: Path, programs: Sequence[ProgramSpec]) -> None:
    """Weights lie in the engines themselves."""


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
