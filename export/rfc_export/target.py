"""Target: what programs were built on and for, and whether this machine can run them."""

from __future__ import annotations

import platform

import torch

from rfc_export.errors import TargetError
from rfc_export.manifest import Manifest
from rfc_export.specs import TargetSpec

INSTRUCTION_SETS = ("DEFAULT", "AVX2", "AVX512", "AMX")
"""Of x86 processors as torch names them, each with all before it."""


def target_of(device: torch.device) -> TargetSpec:
    """Describe a device of this machine."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return TargetSpec(device="cuda", name=name, compute_capability=f"{major}.{minor}", cpu_isa=None)
    return TargetSpec(device="cpu", name=platform.machine(), compute_capability=None, cpu_isa=torch.backends.cpu.get_cpu_capability())


def built_with() -> dict[str, str]:
    """Versions of what every export uses."""
    from rfc_fx.tools.summary_json import versions

    return versions()


def is_on(device: torch.device, wanted: torch.device) -> bool:
    """Whether a device is the wanted one; without a number any of its type is."""
    numbers: tuple[int | None, int | None] = (device.index, wanted.index)  # of "cuda" none
    return device.type == wanted.type and (None in numbers or numbers[0] == numbers[1])


def numbered(device: torch.device) -> torch.device:
    """The device with its number: "cuda" is the current one of the thread that asks, and an engine stays where its weights are."""
    if device != torch.device("cuda") or not torch.cuda.is_available():
        return device
    return torch.device("cuda", torch.cuda.current_device())


def check_target(where: str, manifest: Manifest, device: torch.device) -> None:
    """TargetError where the artefact is for another kind of device, processor, GPU or, for machine code, version of torch."""
    built_for = manifest.target
    if device.type != built_for.device:
        raise TargetError(f"{where}: built for {built_for.device}, asked to run on {device}; export again with device={device.type!r}")
    if manifest.backend == "onnx":  # its files are portable
        return
    here = target_of(device)
    if device.type == "cpu":
        if here.name != built_for.name:
            raise TargetError(f"{where}: built for {built_for.name} processors, this one is {here.name}; export again on such a machine")
        if _rank(built_for.cpu_isa) > _rank(here.cpu_isa):
            raise TargetError(f"{where}: built with {built_for.cpu_isa} instructions, this processor has {here.cpu_isa}; export again here")
    elif here.compute_capability != built_for.compute_capability:
        raise TargetError(
            f"{where}: built for {built_for.name} (compute capability {built_for.compute_capability}), this is {here.name} "
            f"({here.compute_capability}); export again here"
        )
    if manifest.backend == "aoti":
        built, runs = (_minor(version) for version in (manifest.built_with.get("torch", "?"), torch.__version__))
        if built != runs:
            raise TargetError(f"{where}: built with torch {built}, this is torch {runs}; install that one, or export again")


def _rank(name: str | None) -> int:
    known = [instructions for instructions in INSTRUCTION_SETS if name and instructions in name.upper()]
    return INSTRUCTION_SETS.index(known[-1]) if known else 0


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
