"""Runtime: an engine stands where the transformer stood. It runs the programs of an artefact; the model's Python is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rfc.state import SlotSpec
from rfc_export.artifact import check_files, opened, read_manifest
from rfc_export.backends import Run, backend
from rfc_export.calls import RETURN_DICT, ExpectedCall
from rfc_export.errors import ArtifactError
from rfc_export.manifest import WEIGHTS, Manifest, ProgramSpec
from rfc_export.methods import decode_method, dtype_of
from rfc_export.portable import STEP
from rfc_export.target import check_target
from rfc_fx.errors import SignatureError
from rfc_fx.ir.layout import Layout, Pool
from rfc_fx.ir.plan import Plan, SlotRow
from rfc_fx.ir.program import Argument, ProgramSet, unflattener
from rfc_fx.runtime.calls import Call, CallPattern, new_call
from rfc_fx.runtime.context import CondContext, Context
from rfc_fx.runtime.contexts import Contexts
from rfc_fx.runtime.step_model import StepModel

KEY = 0
"""An engine answers one call signature."""


@dataclass(frozen=True)
class LoadedProgram:
    """A program of an artefact, as the host runs it: first the inputs, then the memory for new state."""

    phase: str
    spec: ProgramSpec
    call: Run
    batched: None = None

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """What to pass, in order."""
        inputs: list[Any] = [(spec.kind, spec.name) for spec in self.spec.inputs]
        return (*inputs, *(("next", spec.name) for spec in self.spec.outputs if spec.kind == "next"))

    @cached_property
    def results(self) -> tuple[str, ...]:
        """What comes back, in order."""
        named = {"decision": "decision", "output": "output:{}", "carry": "carry:{}"}
        return tuple(named[spec.kind].format(spec.name) for spec in self.spec.outputs if spec.kind in named)

    @cached_property
    def returned(self) -> tuple[str, ...]:
        """Slots whose new value it returns."""
        return tuple(spec.name for spec in self.spec.outputs if spec.kind == "next")

    @cached_property
    def _next(self) -> list[int]:
        return [i for i, spec in enumerate(self.spec.outputs) if spec.kind == "next"]

    @cached_property
    def _placed(self) -> list[bool]:
        return [spec.kind in ("state", "pool", "progress", "log") for spec in self.spec.inputs]

    def run(self, *given: Tensor) -> Sequence[Tensor]:
        """Run it. What is no state is made contiguous first: compiled code takes it to be, and an expanded timestep is not."""
        count = len(self.spec.inputs)
        inputs = [t if fixed else t.contiguous() for t, fixed in zip(given[:count], self._placed, strict=True)]
        return self.call(inputs, dict(zip(self._next, given[count:], strict=True)))


@dataclass(frozen=True)
class LoadedSet:
    """The programs of an artefact and what the host must know of them."""

    manifest: Manifest
    programs: Mapping[str, LoadedProgram]
    layout: Layout
    plan: Plan
    device: torch.device
    timestep: str | None
    expected: ExpectedCall

    @cached_property
    def placeholders(self) -> list[Argument]:
        """The tensor arguments by the names that programs have for them."""
        return [("input", leaf.placeholder) for leaf in self.manifest.call.leaves if leaf.placeholder is not None]

    @property
    def latent(self) -> str:
        """Name of the argument that the sampler moves."""
        return self.manifest.call.latent

    @property
    def counts_itself(self) -> bool:
        """Whether step numbers and decisions are state of the program."""
        return self.manifest.dispatch == "cond"

    @property
    def returns_state(self) -> bool:
        """Whether new state is written beside the old, and takes its place afterwards."""
        return any(spec.kind == "next" for program in self.programs.values() for spec in program.spec.outputs)

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        """The tensor arguments in the order of the placeholders."""
        return [leaf for leaf, spec in zip(leaves, self.manifest.call.leaves, strict=True) if spec.placeholder is not None]

    def unflatten(self, outputs: Sequence[Tensor]) -> Any:
        """What the model's forward returns."""
        return self._unflatten(outputs)

    @cached_property
    def _unflatten(self) -> Callable[[Sequence[Tensor]], Any]:
        return unflattener(self.expected.outputs)


class EngineContext(Context):
    """A context of a host-dispatched engine. Where new state is written beside the old, the two change places after a program that did."""

    def __init__(self, compiled: LoadedSet) -> None:
        super().__init__(compiled)
        self.beside: dict[str, Tensor] = compiled.layout.allocate(compiled.device)[0] if compiled.returns_state else {}
        """Memory for new state, by slot."""

    def memory(self) -> dict[Argument, Tensor]:
        """What programs read and write here from step to step, and where new state goes."""
        return super().memory() | _named("next", self.beside)

    def tensors(self) -> Iterable[Tensor]:
        """All that is held from step to step."""
        return (*self.state.values(), *self.beside.values())

    def ran(self, phase: str) -> None:
        """Exchange the memory of what the program wrote."""
        written = self.compiled.programs[phase].returned  # type: ignore[attr-defined]
        for name in written:
            self.state[name], self.beside[name] = self.beside[name], self.state[name]
        if written:
            self.bound.clear()


class CondEngineContext(EngineContext, CondContext):
    """A context of an engine whose program counts and decides."""

    def memory(self) -> dict[Argument, Tensor]:
        """What the program reads and writes, progress and log under names of their own."""
        return super().memory() | _named("progress", self.state) | _named("log", self.state)


def engine_context(compiled: ProgramSet) -> EngineContext:
    """Empty state of an engine."""
    assert isinstance(compiled, LoadedSet)
    return CondEngineContext(compiled) if compiled.counts_itself else EngineContext(compiled)


def _named(kind: Any, tensors: Mapping[str, Tensor]) -> dict[Argument, Tensor]:
    return {(kind, name): tensor for name, tensor in tensors.items()}


class EngineCalls:
    """The programs of an engine for the one call that they answer."""

    def __init__(self, loaded: LoadedSet, timestep: str | None) -> None:
        self.loaded, self._timestep = loaded, timestep
        self._pattern: CallPattern | None = None

    def recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call, held against the one that was exported; one that is written as an earlier one was is recognised at once."""
        loaded, pattern = self.loaded, self._pattern
        if pattern is not None and (written := pattern.match(args, kwargs)) is not None:
            return pattern.call(loaded, written)
        expected = loaded.expected
        arguments, leaves = expected.match(args, kwargs, loaded.device)
        call = new_call(KEY, loaded, leaves, arguments, self._timestep)
        given = expected.given(args, kwargs)
        if given.keys() == arguments.keys() and not expected.fixed and RETURN_DICT not in given:
            self._pattern = CallPattern.of(call, arguments, self._timestep, args, kwargs) or pattern
        return call

    def has_changed(self) -> bool:
        """Never: an artefact is what it is."""
        return False

    def drop(self) -> None:
        """Nothing is captured anew."""


class Engine(StepModel):
    """An exported model: the same call, contexts, `reset()`, `stats` and `summary()` as the CachedModel it was made from.

    It has the model's `config`, `dtype` and `device`, and can stand in a diffusers pipeline. Made by `rfc_export.load`.
    """

    def __init__(self, loaded: LoadedSet, resources: ExitStack) -> None:
        manifest = loaded.manifest
        timestep = manifest.call.timestep
        programs, contexts = EngineCalls(loaded, timestep), Contexts(engine_context)
        super().__init__(
            manifest.model.model_class, loaded.expected.signature, timestep, decode_method(manifest.method), programs, contexts
        )
        self.manifest = manifest
        self._loaded = loaded
        self._resources = resources
        self.eval()

    @property
    def programs(self) -> Mapping[str, LoadedProgram]:
        """The programs by phase."""
        return self._loaded.programs

    @cached_property
    def config(self) -> Any:
        """The model's configuration, for pipelines."""
        from diffusers.configuration_utils import FrozenDict

        return FrozenDict(self.manifest.model.config)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return dtype_of("model.dtype", self.manifest.model.dtype)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._loaded.device

    def to(self, *args: Any, **kwargs: Any) -> Engine:
        """Nothing, where the engine is there already; SignatureError for another place or type: programs are made for one."""
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and torch.device(device).type != self.device.type) or (dtype is not None and dtype != self.dtype):
            raise SignatureError(f"{self.model_name}: an engine stays {self.dtype} on {self.device}; export another for {device or dtype}")
        return self

    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE."""
        return self._loaded.plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's."""
        result = self._cond_step(args, kwargs) if self._loaded.counts_itself else super().forward(*args, **kwargs)
        return self._wrapped(result, args, kwargs)

    @torch.no_grad()
    def _cond_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.driver.programs.recognise(args, kwargs)
        context = self.driver.contexts.of(call)
        numbers = _named("numbers", self.driver.numbers_on(self.device))
        values = context.memory() | numbers | dict(zip(self._loaded.placeholders, call.inputs, strict=True))
        program = self._loaded.programs[STEP]
        results = program.run(*(values[key] for key in program.arguments))
        context.ran(STEP)
        return self._loaded.unflatten(results)

    def _wrapped(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result as `return_dict` of this call asks for it."""
        spec = self.manifest.call
        if RETURN_DICT not in spec.parameters:
            return result
        index = spec.parameters.index(RETURN_DICT)
        as_dict = args[index] if len(args) > index else kwargs.get(RETURN_DICT, spec.defaults.get(RETURN_DICT))
        if as_dict or isinstance(result, tuple):
            if as_dict and isinstance(result, tuple):
                raise SignatureError(f"{self.model_name}: built with return_dict=False; call with return_dict=False, or export with True")
            return result
        return result.to_tuple()

    def close(self) -> None:
        """Delete what was unpacked for this engine; it cannot be called afterwards."""
        self._resources.close()


def load(path: str | Path, *, device: str | torch.device = "cpu", report: Callable[[str], object] = lambda line: None) -> Engine:
    """Return the engine of an artefact, a folder or a .pt2 file.

    Schema, files, versions and device are checked first. Raises ArtifactError for what is damaged, TargetError for what was built for
    another machine, BackendError where its back end is not installed.
    """
    path, device = Path(path), torch.device(device)
    with ExitStack() as resources:
        folder = resources.enter_context(opened(path))
        manifest = read_manifest(folder)
        _check_phases(manifest)
        report("checking files")
        check_files(folder, manifest)
        check_target(str(path), manifest, device)
        maker = backend(manifest.backend)
        maker.check(device)
        report("reading weights")
        weights = _weights(folder / WEIGHTS, device)
        report("opening programs")
        opened_programs = maker.open(folder, manifest, weights, device)
        programs = {phase: LoadedProgram(phase, spec, opened_programs[phase]) for phase, spec in manifest.programs.items()}
        return Engine(_loaded(manifest, programs, weights, device), resources.pop_all())


def _check_phases(manifest: Manifest) -> None:
    """ArtifactError where the method has a phase that no program is for."""
    phases = decode_method(manifest.method).schedule.phases
    there = {"FULL", "ESTIMATE"} if manifest.dispatch == "cond" else set(manifest.programs)
    if missing := [phase for phase in phases if phase not in there]:
        raise ArtifactError(f"method.schedule: has the phases {', '.join(phases)}, there is no program for {', '.join(missing)}")


def _weights(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}; copy the artefact again") from error


def _loaded(manifest: Manifest, programs: dict[str, LoadedProgram], weights: Mapping[str, Tensor], device: torch.device) -> LoadedSet:
    call = manifest.call
    lost = [leaf.fixed for leaf in call.leaves if leaf.fixed is not None and leaf.fixed not in weights]
    if lost:
        raise ArtifactError(f"{WEIGHTS}: {', '.join(lost)} missing")
    fixed = {leaf.fixed: weights[leaf.fixed] for leaf in call.leaves if leaf.fixed is not None}
    slots = {slot.name: SlotSpec(tuple(slot.shape), dtype_of(slot.name, slot.dtype)) for slot in manifest.state}
    pools = {
        pool.name: Pool(pool.name, tuple(pool.slots), SlotSpec(tuple(pool.shape), dtype_of(pool.name, pool.dtype)))
        for pool in manifest.pools
    }
    places = {slot.name: (pools[slot.pool], slot.row or 0) for slot in manifest.state if slot.pool is not None}
    rows = [
        SlotRow(name, spec.shape, spec.dtype, torch.empty(spec.shape, dtype=spec.dtype, device="meta").nbytes)
        for name, spec in slots.items()
    ]
    spec = manifest.plan
    held = sum(row.bytes for row in rows)
    plan = Plan(spec.sites, rows, held, spec.full_flops, spec.estimate_flops, phase_flops=dict(spec.phase_flops))
    timestep = next((leaf.placeholder for leaf in call.leaves if leaf.argument == call.timestep), None)
    layout = Layout(slots, tuple(pools.values()), places)
    return LoadedSet(manifest, programs, layout, plan, device, timestep, ExpectedCall(call, manifest.model.model_class, fixed))
