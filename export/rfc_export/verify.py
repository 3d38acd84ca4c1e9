"""Verification: an artefact against this machine, and its engine against the model over the calls of a whole generation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import rfc_fx
from rfc.phase import FULL
from rfc_export.engine_files import opened
from rfc_export.engine_source import Exportable, engine_source, with_first_call
from rfc_export.errors import ExportError
from rfc_export.held_weights import read_weights
from rfc_export.loaded import LoadedSet
from rfc_export.manifest import WEIGHTS, Manifest
from rfc_export.methods import decode_method, dtype_of
from rfc_export.parity import TOLERANCE, Parity, compare, exercised, moved, timesteps_of
from rfc_export.reading import read_manifest
from rfc_export.runtime import Engine, load
from rfc_export.seal import Key
from rfc_export.target import built_with, check_target, target_of
from rfc_fx.capture.export import named_arguments
from rfc_fx.errors import SignatureError
from rfc_fx.runtime.summary import mib
from rfc_fx.runtime.warnings import NothingSkippedWarning
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.load import LoadError, load_transformer, locate, transformer_class

STEPS = 50
"""Of the generation over which an engine is compared."""


def checks(
    path: Path, device: torch.device, classes: Sequence[type] = (), trusted: Sequence[Key] | None = None, trust: bool = False
) -> Iterator[tuple[str, str]]:
    """(subject, finding) of every check that needs no model; raises as `load` does where something is wrong."""
    with opened(path) as files:
        manifest = read_manifest(files, trusted)
        programs = ", ".join(dict.fromkeys(phase for one in manifest.sets for phase in one.programs))
        yield (
            "manifest",
            f"schema {manifest.schema_version}, {manifest.backend}, {manifest.config.dispatch} dispatch, calls: {len(manifest.sets)}, "
            f"made {manifest.created_at}",
        )
        yield "model", f"{manifest.model.model_class}, {manifest.model.dtype}, {decode_method(manifest.method, classes)}"
        for name in manifest.files.keys() - {WEIGHTS}:
            files.read(name, manifest.files[name])
        read_weights(files, manifest, torch.device("cpu"))
        total = sum(spec.bytes for spec in manifest.files.values())
        yield "files", f"{len(manifest.files)} with {mib(total)}, all as the manifest says (SHA-256), {signed_by(manifest)}"
        check_target(str(path), manifest, device)
        yield "target", f"built for {_machine(manifest.target)}; this is {_machine(target_of(device))}"
        yield "versions", versions_against(manifest)
    load(path, device=device, classes=classes, trusted=trusted, trust=trust).close()
    yield "programs", f"{programs} open with the weights"


def signed_by(manifest: Manifest) -> str:
    """Who signed it, in words."""
    return "not signed" if manifest.signature is None else f"signed by {manifest.signature.public_key[:16]}..."


def _machine(target: Any) -> str:
    return " ".join(part for part in (target.device, target.name, target.cpu_isa, target.compute_capability) if part)


def versions_against(manifest: Manifest) -> str:
    """What it was built with, and what differs here."""
    here = built_with()
    other = [f"{name} {version} (here {here[name]})" for name, version in manifest.built_with.items() if here.get(name, version) != version]
    return f"other than here: {', '.join(other)}" if other else f"as here: torch {here['torch']}, diffusers {here['diffusers']}"


class _CallRecorder:
    """Stands in for the model in a sampler, and records its calls."""

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
class RecordedGeneration:
    """The calls of one generation, to be repeated with any model."""

    calls: list[dict[str, Any]]
    timesteps: Tensor | None
    description: str

    def repeated(self, name: str | None) -> list[float] | None:
        """The timesteps, in the argument `name`, where one comes twice; else None."""
        known = timesteps_of(self.calls, name)
        return known if known is not None and len({*known}) < len(known) else None

    def prepare(self, model: Any) -> None:
        """Tell a model the timesteps, as the sampler does."""
        if self.timesteps is not None and callable(prepare := getattr(model, "prepare", None)):
            prepare(self.timesteps)


def record_generation(
    name: str, engine: Engine, model: Any, inputs: dict[str, Any] | None, steps: int | None = None, number: int = 0
) -> RecordedGeneration:
    """The calls of `steps` steps of the engine's call `number`: of the manifest's sampler, else of inputs that drift.

    None: as many as its full steps were placed for, else 50. ExportError without either.
    """
    manifest, schedule = engine.manifest, engine.method.schedule
    steps = steps or (schedule.num_steps if schedule.is_placed else None) or STEPS
    if manifest.sampler is not None:
        source = engine_source(name, engine, None, [0], None)
        recorder, size = _CallRecorder(model), source.size_of(number)
        with torch.no_grad():
            model.reset()
            source.draw_batch(recorder, [source.classes[i % len(source.classes)] for i in range(size)], 0, steps, lambda: None)
            model.reset()
        return RecordedGeneration(recorder.calls, source.scheduler.timesteps, f"{steps} steps of the digits sampler")
    if inputs is None:
        raise ExportError(f"{name}: says nothing of a sampler; pass --model, whose inputs are used")
    calls = [moved(inputs, step, steps, manifest.call.timestep) for step in range(steps)]
    return RecordedGeneration(calls, None, f"{steps} steps of drifting inputs")


def exported_from(name: str, engine: Engine) -> Exportable:
    """The model an engine is held against, with calls for each of the engine's. ExportError for a model of another class."""
    manifest = engine.manifest
    if (own := transformer_class(locate(name))) != manifest.model.model_class:
        raise ExportError(f"{name}: is a {own}, the engine was made from a {manifest.model.model_class}")
    dtype = dtype_of("model.dtype", manifest.model.dtype)
    try:
        original = with_first_call(name, dtype, engine.device)
    except (LoadError, OptionError):  # the pipeline draws with other arguments than its defaults: a picture, say
        original = Exportable(load_transformer(locate(name), dtype, engine.device), [], None)
    return replace(original, calls=[_call_for(loaded, original.calls, engine.device) for loaded in engine.sets])


def _call_for(loaded: LoadedSet, known: Sequence[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """A call with the types and shapes of an engine's: one that is known, else one whose tensors are cut or repeated to those shapes.

    What no known call has is made of random numbers and, for whole ones, of ones.
    """
    for call in known:
        with suppress(SignatureError):
            loaded.expected.match((), call, device)
            return call
    generator, leaves = torch.Generator().manual_seed(0), list[Any]()
    like = {name: iter(pytree.tree_leaves(value)) for name, value in (known[0] if known else {}).items()}
    for leaf in loaded.spec.call.leaves:
        other, shape = next(like.get(leaf.argument, iter(())), None), leaf.shape or []
        if leaf.dtype is None:
            leaves.append(leaf.value)
        elif leaf.fixed is not None:
            leaves.append(loaded.expected.fixed[leaf.fixed])
        else:
            dtype = dtype_of(leaf.argument, leaf.dtype)
            is_timestep = leaf.argument == loaded.spec.call.timestep
            value = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.ones(shape)
            if is_timestep:
                value = torch.full(shape, 1.0 if dtype.is_floating_point else 500.0)
            if isinstance(other, Tensor) and other.dtype is dtype and (other.any() or not is_timestep):
                value = _fitted(other, shape, value)
            leaves.append(value.to(device, dtype))
    return dict(pytree.tree_unflatten(leaves, loaded.expected.tree))


def _fitted(x: Tensor, shape: Sequence[int], otherwise: Tensor) -> Tensor:
    """The tensor, cut or repeated along its axes; `otherwise` where it has others."""
    if x.dim() != len(shape) or not x.numel():
        return otherwise
    for axis, size in enumerate(shape):
        x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
    return x


def cached_like(engine: Engine, model: nn.Module, inputs: dict[str, Any]) -> rfc_fx.CachedModel:
    """The CachedModel with the engine's method, and configuration."""
    return rfc_fx.transform(model, engine.method, example_inputs=inputs, config=engine.manifest.config)


@dataclass(frozen=True)
class Verdict:
    """Parity over a whole generation, and the first step where it fails."""

    parity: Parity
    tolerance: float
    description: str
    fault: str | None = field(default=None)
    """The first step that differs from the model's; None where all agree."""
    forced: Parity | None = None
    """Of a few steps in which every phase was forced, where the generation had none but FULL."""

    @property
    def finding(self) -> str:
        """In one line."""
        if self.fault is not None:
            return self.fault
        full = self.parity.phases.count(FULL.name)
        return (
            f"{self.description}: the same {len(self.parity.phases)} decisions ({full} FULL), largest error {self.parity.worst:.1e} of the "
            f"output, allowed {self.tolerance:g}"
            + (
                ""
                if self.forced is None
                else f"; none was skipped, so {len(self.forced.phases)} steps were forced: {self.forced.worst:.1e}"
            )
        )


def parity_over(engine: Engine, model: rfc_fx.CachedModel, generation: RecordedGeneration) -> Verdict:
    """Run both over the same calls and compare decisions and outputs; where no step was skipped, also over a few that are forced."""
    generation.prepare(engine)
    generation.prepare(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingSkippedWarning)  # the finding says it
        parity = compare(engine, model, generation.calls)
    tolerance = TOLERANCE.get(engine.manifest.model.dtype, TOLERANCE["float32"])
    problem, forced = fault(parity, tolerance), None
    if problem is None and {*parity.phases} == {FULL.name} != {*engine.method.schedule.branches}:
        with exercised(engine, model, generation.calls[0]) as calls:
            forced = compare(engine, model, calls)
        problem = fault(forced, tolerance)
    return Verdict(parity, tolerance, generation.description, problem, forced)


def fault(parity: Parity, tolerance: float) -> str | None:
    """The first step with another decision or an error beyond rounding, in words."""
    for step, (phase, expected, error) in enumerate(zip(parity.phases, parity.expected_phases, parity.errors, strict=True)):
        if phase != expected:
            return f"step {step}: the engine decided {phase}, the model {expected}"
        if not error <= tolerance:
            return f"step {step} ({phase}): the output is off by {error:.1e} of the model's, allowed {tolerance:g}"
    return None
