"""Checking: an artefact against this machine, and its engine against the model over the calls of a whole generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rfc_fx
from rfc_export.artifact import check_files, opened, read_manifest
from rfc_export.drawing import Exportable, engine_source, exportable
from rfc_export.errors import ExportError
from rfc_export.manifest import Manifest
from rfc_export.methods import decode_method, dtype_of
from rfc_export.parity import TOLERANCE, Parity, compare, moved
from rfc_export.runtime import Engine, load
from rfc_export.target import built_with, check_target, target_of
from rfc_fx.capture.export import named_arguments
from rfc_fx.ir.program import HOISTED_PHASES
from rfc_fx.runtime.summary import mib

STEPS = 50
"""Of the generation over which an engine is compared."""


def checks(path: Path, device: torch.device) -> Iterator[tuple[str, str]]:
    """(what, finding) for everything that can be looked at without the model; raises as `load` does where something is wrong."""
    with opened(path) as folder:
        manifest = read_manifest(folder)
        programs = ", ".join(manifest.programs)
        yield "manifest", f"schema {manifest.schema_version}, {manifest.backend}, {manifest.dispatch} dispatch, made {manifest.created_at}"
        yield "model", f"{manifest.model.model_class}, {manifest.model.dtype}, {decode_method(manifest.method)}"
        check_files(folder, manifest)
        total = sum(spec.bytes for spec in manifest.files.values())
        yield "files", f"{len(manifest.files)} with {mib(total)}, all as the manifest says (SHA-256)"
        check_target(str(path), manifest, device)
        yield "target", f"built for {_machine(manifest.target)}; this is {_machine(target_of(device))}"
        yield "versions", versions_against(manifest)
    load(path, device=device).close()
    yield "programs", f"{programs} open with the weights"


def _machine(target: Any) -> str:
    return " ".join(part for part in (target.device, target.name, target.cpu_isa, target.compute_capability) if part)


def versions_against(manifest: Manifest) -> str:
    """What it was built with, and what differs here."""
    here = built_with()
    other = [f"{name} {version} (here {here[name]})" for name, version in manifest.built_with.items() if here.get(name, version) != version]
    return f"other than here: {', '.join(other)}" if other else f"as here: torch {here['torch']}, diffusers {here['diffusers']}"


class Recorder:
    """Stands where the model stands in a sampler, and keeps the calls."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[dict[str, Any]] = []

    def prepare(self, timesteps: Tensor) -> None:
        """Pass the timesteps on."""
        self.model.prepare(timesteps)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = named_arguments(self.model.call_signature, args, kwargs)
        self.calls.append({name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()})
        return self.model(*args, **kwargs)


@dataclass(frozen=True)
class Work:
    """The calls of one generation."""

    calls: list[dict[str, Any]]
    timesteps: Tensor | None
    what: str

    def prepare(self, model: Any) -> None:
        """Tell a model the timesteps, as the sampler does."""
        if self.timesteps is not None and callable(prepare := getattr(model, "prepare", None)):
            prepare(self.timesteps)


def work(name: str, engine: Engine, model: Any, inputs: dict[str, Any] | None, steps: int = STEPS) -> Work:
    """The calls of `steps` steps: of the sampler where the manifest says it, of inputs that drift otherwise; ExportError without either."""
    manifest = engine.manifest
    if manifest.sampler is not None:
        source = engine_source(name, engine, None, [0], None)
        recorder = Recorder(model)
        with torch.no_grad():
            model.reset()
            source.draw_batch(recorder, source.classes, 0, steps, lambda: None)
            model.reset()
        return Work(recorder.calls, source.scheduler.timesteps, f"{steps} steps of the digits sampler")
    if inputs is None:
        raise ExportError(f"{name}: says nothing of a sampler; pass --model, whose inputs are used")
    calls = [moved(inputs, step, steps, manifest.call.timestep) for step in range(steps)]
    return Work(calls, None, f"{steps} steps of drifting inputs")


def exported_from(name: str, engine: Engine) -> Exportable:
    """The model an engine is held against, with inputs for as many samples. ExportError for a model of another class or dtype."""
    manifest = engine.manifest
    dtype = dtype_of("model.dtype", manifest.model.dtype)
    found = exportable(name, dtype, engine.device, None)
    rows = next((leaf.shape[0] for leaf in manifest.call.leaves if leaf.argument == manifest.call.latent and leaf.shape), 0)
    latent = found.inputs.get(manifest.call.latent)
    if type(found.model).__name__ != manifest.model.model_class or not isinstance(latent, Tensor):
        raise ExportError(f"{name}: is a {type(found.model).__name__}, the engine was made from a {manifest.model.model_class}")
    if rows != len(latent):
        each = 2 if found.sampler is not None else len(latent)
        found = exportable(name, dtype, engine.device, max(rows // each, 1))
    return found


def cached_like(engine: Engine, model: nn.Module, inputs: dict[str, Any]) -> rfc_fx.CachedModel:
    """The CachedModel with the engine's method, and hoisted where the engine is."""
    manifest = engine.manifest
    hoist = any(phase in manifest.programs for phase in HOISTED_PHASES)
    return rfc_fx.transform(model, inputs, method=engine.method, granularity=manifest.granularity, hoist=hoist)


@dataclass(frozen=True)
class Verdict:
    """What a whole generation showed."""

    parity: Parity
    tolerance: float
    what: str
    fault: str | None = field(default=None)
    """The first step that is not as the model's."""

    @property
    def finding(self) -> str:
        """In one line."""
        if self.fault is not None:
            return self.fault
        full = self.parity.phases.count("FULL")
        return (
            f"{self.what}: the same {len(self.parity.phases)} decisions ({full} FULL), largest error {self.parity.worst:.1e} of the "
            f"output, allowed {self.tolerance:g}"
        )


def parity_over(engine: Engine, model: rfc_fx.CachedModel, todo: Work) -> Verdict:
    """Run both over the same calls."""
    for one in (engine, model):
        todo.prepare(one)
    found = compare(engine, model, todo.calls)
    tolerance = TOLERANCE.get(engine.manifest.model.dtype, TOLERANCE["float32"])
    return Verdict(found, tolerance, todo.what, fault(found, tolerance))


def fault(found: Parity, tolerance: float) -> str | None:
    """The first step with another decision or an error beyond rounding, in words."""
    for step, (phase, expected, error) in enumerate(zip(found.phases, found.expected_phases, found.errors, strict=True)):
        if phase != expected:
            return f"step {step}: the engine decided {phase}, the model {expected}"
        if not error <= tolerance:
            return f"step {step} ({phase}): the output is off by {error:.1e} of the model's, allowed {tolerance:g}"
    return None
