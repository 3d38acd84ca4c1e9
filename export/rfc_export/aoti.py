"""AOTInductor: the programs in one .pt2 archive as machine code, without weights: those are handed in, shared by all programs.

The functions of torch that do this are private; they are called here and nowhere else (torch 2.11 to 2.13).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rfc_export.artifact import Manifest
from rfc_export.backends import Built, Report, Run
from rfc_export.errors import ArtifactError, BackendError, ExportError
from rfc_export.portable import STEP, Portable
from rfc_fx.doctor import CompilerError, compile_seconds

WRITES: Literal["in_place", "returned"] = "in_place"
POOLS = True

PROGRAMS = "programs.pt2"

OPTIONS: dict[str, Any] = {"aot_inductor.package": True, "aot_inductor.package_constants_in_so": False}


def check(device: torch.device) -> None:
    """Nothing beyond torch is needed to run; a compiler is needed to build (`build`)."""


def versions() -> dict[str, str]:
    """Versions that decide whether a program can be opened; torch's is noted by every export."""
    return {}


def build(
    programs: Mapping[str, Portable], weights: Mapping[str, Tensor], folder: Path, device: torch.device, report: Report
) -> dict[str, Built]:
    """Compile every program and put them into one archive. BackendError where nothing can be compiled here."""
    from torch.export.pt2_archive._package import package_pt2

    try:
        compile_seconds(device)
    except CompilerError as error:
        raise BackendError(f"aoti: {error}") from error
    files: dict[str, Any] = {}
    for phase, program in programs.items():
        report(f"compiling {phase}")
        files[phase] = _compiled(program)
    package_pt2(str(folder / PROGRAMS), aoti_files=files)
    return {phase: Built(PROGRAMS, phase) for phase in programs}


def _compiled(program: Portable) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # strict for STEP: only there does torch trace a torch.cond with fixed shapes
        exported = torch.export.export(program.module, program.examples, strict=program.phase == STEP)
        writes = any(node.target is torch.ops.aten.copy_.default for node in exported.graph.nodes)
        module: Any = exported.module()
        files = torch._inductor.aot_compile(module, program.examples, options=OPTIONS)
    if program.phase in ("FULL", STEP) and not writes:
        raise ExportError(f"export: {program.phase} writes no state after torch.export; it would be frozen; please report this")
    return files


@dataclass(frozen=True)
class _Runner:
    """A loaded program; results that are not new state come back in order."""

    loader: Any
    weights: dict[str, Tensor]
    """Kept alive: the program holds pointers to them."""

    def __call__(self, inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        outputs: list[Tensor] = self.loader.boxed_run(list(inputs))
        return outputs


def open(folder: Path, manifest: Manifest, weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Run]:
    """Load the programs and hand them the weights; ArtifactError where the archive has other programs or asks for other weights."""
    runners: dict[str, Run] = {}
    for phase, spec in manifest.programs.items():
        try:
            loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / spec.file), spec.entry, False, 1, device.index or -1)
        except RuntimeError as error:
            raise ArtifactError(f"{folder / spec.file}: {phase} cannot be loaded: {error}; export again") from error
        wanted = list(loader.get_constant_fqns())
        if lost := [name for name in wanted if name not in spec.weights or spec.weights[name] not in weights]:
            raise ArtifactError(f"{folder / spec.file}: {phase} asks for weights that are not there: {', '.join(lost[:3])}; export again")
        own = {name: weights[spec.weights[name]] for name in wanted}
        loader.load_constants(own, False, True, True)
        runners[phase] = _Runner(loader, own)
    return runners
