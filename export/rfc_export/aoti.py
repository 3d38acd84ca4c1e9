"""AOTInductor: the programs in one .pt2 archive as machine code, without weights: those are handed in, shared by all programs.

The functions of torch that do this are private; they are called here and nowhere else.
"""

from __future__ import annotations

import platform
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rfc_export.aoti_constants import Constants, declared_constants
from rfc_export.backends import Built, Report, Run
from rfc_export.errors import ArtifactError, BackendError, ExportError, TargetError
from rfc_export.manifest import Manifest
from rfc_export.methods import name_of
from rfc_export.portable import STEP, Portable
from rfc_export.specs import ProgramSpec
from rfc_export.weights import declared_as
from rfc_fx.ir.ops import value
from rfc_fx.ir.torch_versions import known_options
from rfc_fx.tools.doctor import CompilerError, compile_seconds

WRITES: Literal["in_place", "returned"] = "in_place"
POOLS = True

PROGRAMS = "programs.pt2"
"""File of the programs for the first call; in those of the next a number stands behind the name."""

OPTIONS: dict[str, Any] = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.enable_line_tables": False,  # for debuggers; more bytes than the code
    "always_keep_tensor_constants": True,  # small weights, too, are handed in, not written into the code
}

ROUNDS = {"emulate_precision_casts": True}
"""Inductor leaves out the rounding of x.bfloat16().float() inside a fused loop."""

HALF = {"bfloat16", "float16"}

PROCESSOR = "processor"
"""Option of an artefact: what its processor can do, as the code is compiled for all of that."""

MOVED = re.compile(r"= std::move\((\w+_graph_\d+_\w+)\);")
"""In C++ that Inductor made: what a branch hands out."""


def check(device: torch.device) -> None:
    """Nothing beyond torch is needed to run; a compiler is needed to build (`build`)."""


def check_types(device: torch.device, dtypes: Iterable[torch.dtype]) -> None:
    """Torch computes in every type."""


def versions() -> dict[str, str]:
    """Versions that decide whether a program can be opened; torch's is noted by every export."""
    return {}


def build(
    programs: Mapping[str, Portable],
    weights: Mapping[str, Tensor],
    folder: Path,
    device: torch.device,
    report: Report,
    suffix: str = "",
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
    name = PROGRAMS.replace(".", f"{suffix}.")
    try:
        package_pt2(str(folder / name), aoti_files=files)
    except RuntimeError as error:  # what torch's archive writer makes of a full disk
        raise ExportError(f"export: {name} could not be written, nothing was left there: {error}") from error
    options = {PROCESSOR: " ".join(sorted(_processor()))}
    return {phase: Built(name, phase, options) for phase in programs}


def relocate(folder: Path, programs: Sequence[ProgramSpec]) -> None:
    """Weights are handed to the programs by name."""


def _compiled(program: Portable) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # strict for STEP: only there does torch trace a torch.cond with fixed shapes
        exported = torch.export.export(program.module, program.examples, strict=program.phase == STEP)
        writes = any(node.target is torch.ops.aten.copy_.default for node in exported.graph.nodes)
        if program.written and not writes:
            raise ExportError(f"export: {program.phase} writes no state after torch.export; it would be frozen; please report this")
        module: Any = exported.module()
        options = OPTIONS | ROUNDS if rounds_inside(program, exported) else OPTIONS
        files: Any = torch._inductor.aot_compile(module, program.examples, options=known_options(options))
    for source in (Path(file) for file in files if str(file).endswith(".cpp")):
        check_source(source.read_text())
    return files


def rounds_inside(program: Portable, exported: torch.export.ExportedProgram) -> bool:
    """Whether halves are made of a model and a call that have none, as Kandinsky's rotary embedding makes of float32."""
    weights: dict[str, Any] = {**exported.state_dict, **exported.constants}
    given = {name_of(one.dtype) for one in weights.values() if isinstance(one, Tensor)}
    given |= {one.dtype for one in program.inputs if one.kind == "input"}
    made = {name_of(one.dtype) for node in exported.graph.nodes if isinstance(one := value(node), Tensor)}
    return given.isdisjoint(HALF) and not made.isdisjoint(HALF)


def check_source(text: str) -> None:
    """ExportError where a branch hands one buffer out twice, as Inductor does with equal results: the second would be a null pointer."""
    moved = MOVED.findall(text)
    if len(moved) > len(set(moved)):
        raise ExportError("export: this torch compiles the conditional step wrongly (a result of a branch twice); pass dispatch='host'")


def _processor() -> set[str]:
    """Abilities of this machine's processor by torch's names."""
    return {name for name, able in torch.cpu.get_capabilities().items() if able is True}


@dataclass(frozen=True)
class _Runner:
    """A loaded program; results that are not new state come back in order."""

    loader: Any
    weights: dict[str, Tensor]
    """Kept alive: the program holds pointers to them."""
    device: torch.device
    lock: threading.Lock = field(default_factory=threading.Lock)
    """A loader on CUDA keeps no threads apart."""

    def __call__(self, inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        if self.device.type != "cuda":
            outputs: list[Tensor] = self.loader.boxed_run(list(inputs))
            return outputs
        with self.lock, torch.cuda.device(self.device):  # the stream is the current one of the current device
            outputs = self.loader.boxed_run(list(inputs))
            return outputs


def open(
    where: Path,
    contents: Mapping[str, bytes],
    programs: Mapping[str, ProgramSpec],
    manifest: Manifest,
    weights: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Run]:
    """Load the programs and hand them the weights.

    TargetError where they are for another processor or device; ArtifactError where the archive has other programs, or asks for other
    weights or for weights of another type or shape. One runner each: a second thread waits for the first, as both would use one processor.
    """
    file = next(iter(programs.values())).file
    if lacking := set(str(manifest.options.get(PROCESSOR) or "").split()) - _processor():
        raise TargetError(f"{where / file}: compiled for a processor with {', '.join(sorted(lacking))}; export again on this machine")
    for phase, spec in programs.items():
        if spec.file != file or spec.entry != phase:
            raise ArtifactError(
                f"{where / spec.file}: {phase}: the manifest names {spec.entry} in {spec.file} for it, which is another program; "
                "export again"
            )
    constants = declared_constants(str(where / file), contents[file])
    with tempfile.TemporaryDirectory(prefix="rfc-engine-") as folder:  # torch opens files alone: a private one of what was hashed
        (Path(folder) / file).write_bytes(contents[file])
        return _loaded(where, Path(folder), programs, manifest, constants, weights, device)


def _loaded(
    where: Path,
    folder: Path,
    programs: Mapping[str, ProgramSpec],
    manifest: Manifest,
    constants: Constants,
    weights: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Run]:
    runners: dict[str, Run] = {}
    for phase, spec in programs.items():
        program = f"{where / spec.file}: {phase}"
        if phase not in constants:  # torch 2.11 would not refuse it: its loader crashes
            raise ArtifactError(f"{program} cannot be loaded: the archive has no such program; export again")
        try:
            loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / spec.file), spec.entry, *loader_settings(device))
        except RuntimeError as error:
            raise ArtifactError(f"{program} cannot be loaded: {str(error).splitlines()[0]}; export again") from error
        _check_metadata(program, loader.get_metadata(), device)
        names = list(loader.get_constant_fqns())
        if missing := [name for name in names if name not in spec.weights or spec.weights[name] not in weights]:
            raise ArtifactError(f"{program} asks for weights that are not there: {', '.join(missing[:3])}; export again")
        for name in names:
            if (declared := constants.get(phase, {}).get(name)) is None:
                raise ArtifactError(f"{program} does not say of which type and shape the weight {name} is; export again")
            declared_as(program, name, declared, manifest.weights[spec.weights[name]])
        own = {name: weights[spec.weights[name]] for name in names}
        loader.load_constants(own, False, True, True)
        runners[phase] = _Runner(loader, own, device)
    return runners


def loader_settings(device: torch.device) -> tuple[bool, int, int]:
    """(run_single_threaded, number of runners, index of the device) for a loader.

    On CUDA single-threaded: otherwise a program waits on the host until its run before has ended, and no CUDA graph can hold it.
    """
    return device.type == "cuda", 1, -1 if device.index is None else device.index


def _check_metadata(where: str, metadata: Mapping[str, str], device: torch.device) -> None:
    here = {"AOTI_PLATFORM": sys.platform, "AOTI_MACHINE": platform.machine(), "AOTI_DEVICE_KEY": device.type}
    for name, own in here.items():
        if (built := metadata.get(name, own)) != own:
            raise TargetError(f"{where} was compiled for {built}, this is {own}; export again on this machine")
