"""Runtime: an engine stands where the transformer stood. It runs the programs of an artefact; the model's Python is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rfc.method import Method
from rfc.state import SlotSpec
from rfc_export.artifact import check_files, opened, read_manifest
from rfc_export.backends import Run, backend
from rfc_export.calls import RETURN_DICT, ExpectedCall
from rfc_export.errors import ArtifactError
from rfc_export.manifest import WEIGHTS, Manifest
from rfc_export.methods import decode_method, dtype_of
from rfc_export.portable import STEP
from rfc_export.specs import ProgramSpec
from rfc_export.target import check_target
from rfc_fx.errors import SignatureError
from rfc_fx.ir.layout import Layout, Pool
from rfc_fx.ir.plan import Plan, SlotRow
from rfc_fx.ir.program import Argument
from rfc_fx.runtime.context import CondContext, Context, new_context
from rfc_fx.runtime.driver import StepModel
from rfc_fx.runtime.program_cache import Call, CallPattern, new_call
from rfc_fx.runtime.summary import Summary

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
        return self.manifest.config.dispatch == "cond"

    @property
    def returns_state(self) -> bool:
        """Whether new state is written beside the old, and takes its place afterwards."""
        return any(spec.kind == "next" for program in self.programs.values() for spec in program.spec.outputs)

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        """The tensor arguments in the order of the placeholders."""
        return [leaf for leaf, spec in zip(leaves, self.manifest.call.leaves, strict=True) if spec.placeholder is not None]

    def unflatten(self, outputs: Sequence[Tensor]) -> Any:
        """What the model's forward returns."""
        return pytree.tree_unflatten(list(outputs), self.expected.outputs)


@dataclass
class _Doubled:
    """State that is written beside the old: after a program that did so, the two change places, as far as it wrote."""

    other: dict[str, Tensor] = field(default_factory=dict)

    def flip(self, context: Context, written: Sequence[str]) -> None:
        for name in written:
            context.state[name], self.other[name] = self.other[name], context.state[name]
        if written:
            context.__dict__.pop("own", None)


class EngineContext(Context):
    """A context of a host-dispatched engine."""

    doubled: _Doubled

    @cached_property
    def own(self) -> dict[Argument, Tensor]:
        """What every step of this context reads, and where new state goes."""
        pools: dict[Argument, Tensor] = {("pool", name): tensor for name, tensor in self.pools.items()}
        return pools | _named("state", self.state) | _named("next", self.doubled.other)

    def ran(self, phase: str) -> None:
        self.doubled.flip(self, self.compiled.programs[phase].returned)  # type: ignore[attr-defined]


class CondEngineContext(CondContext):
    """A context of an engine whose program counts and decides."""

    doubled: _Doubled

    @cached_property
    def own(self) -> dict[Argument, Tensor]:
        """What every step of this context reads, and where new state goes."""
        return _named("state", self.state) | _named("next", self.doubled.other)

    def ran(self, phase: str) -> None:
        self.doubled.flip(self, self.compiled.programs[phase].returned)  # type: ignore[attr-defined]


def _named(kind: Any, tensors: Mapping[str, Tensor]) -> dict[Argument, Tensor]:
    own: dict[Any, Tensor] = {(kind, name): tensor for name, tensor in tensors.items()}
    return own | {(name, name): tensors[name] for name in ("progress", "log") if name in tensors and kind == "state"}


class Engine(StepModel):
    """An exported model: the same call, contexts, `reset()`, `stats` and `summary()` as the CachedModel it was made from.

    It has the model's `config`, `dtype` and `device`, and can stand in a diffusers pipeline. Made by `rfc_export.load`.
    """

    def __init__(self, loaded: LoadedSet, resources: ExitStack, method: Method) -> None:
        manifest = loaded.manifest
        call = manifest.call
        super().__init__(manifest.model.model_class, loaded.expected.signature, call.timestep, method)
        self.manifest = manifest
        self._loaded = loaded
        self._resources = resources
        self._forms: list[CallPattern] = []
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
            raise SignatureError(f"{self._name}: an engine stays {self.dtype} on {self.device}; export another for {device or dtype}")
        return self

    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE."""
        return self._loaded.plan

    def summary(self) -> Summary:
        """What was computed, what was skipped and what it held in memory, state that is written beside the old included; print it."""
        own = super().summary()
        contexts: list[Any] = list(self._contexts.values())
        beside = sum(tensor.nbytes for context in contexts for tensor in context.doubled.other.values())
        return replace(own, held_bytes=own.held_bytes + beside)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's."""
        result = self._whole_step(args, kwargs) if self._loaded.counts_itself else super().forward(*args, **kwargs)
        return self._wrapped(result, args, kwargs)

    @torch.no_grad()
    def _whole_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        context, leaves = self._enter(args, kwargs)
        program = self._loaded.programs[STEP]
        numbers: dict[Any, Tensor] = {("numbers", name): t for name, t in self._numbers_on(self.device).items()}
        values = context.own | numbers | dict(zip(self._loaded.placeholders, self._loaded.inputs(leaves), strict=True))
        results = program.run(*(values[key] for key in program.arguments))
        context.ran(STEP)
        return self._loaded.unflatten(results)

    def _wrapped(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result as `return_dict` of this call asks for it."""
        spec = self.manifest.call
        if RETURN_DICT not in spec.parameters:
            return result
        place = spec.parameters.index(RETURN_DICT)
        wanted = args[place] if len(args) > place else kwargs.get(RETURN_DICT, spec.defaults.get(RETURN_DICT))
        if wanted or isinstance(result, tuple):
            if wanted and isinstance(result, tuple):
                raise SignatureError(f"{self._name}: built with return_dict=False; call with return_dict=False, or export with True")
            return result
        return result.to_tuple()

    def _recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        for form in self._forms:
            if (known := form.match(self._loaded, args, kwargs)) is not None:
                return known
        arguments, leaves = self._loaded.expected.match(args, kwargs, self.device)
        call = new_call(KEY, self._loaded, leaves, arguments, self._timestep)
        given = self._loaded.expected.given(args, kwargs)
        plain = given.keys() == arguments.keys() and not self._loaded.expected.fixed
        if plain and RETURN_DICT not in given and (new := CallPattern.of(call, arguments, self._timestep, args, kwargs)) is not None:
            self._forms = [new]
        return call

    def _new_context(self, call: Call) -> Context:
        kind: type[Any] = CondEngineContext if self._loaded.counts_itself else EngineContext
        context: Any = new_context(self._loaded, kind)
        context.doubled = _Doubled(self._loaded.layout.allocate(self.device)[0] if self._loaded.returns_state else {})
        return context  # type: ignore[no-any-return]

    def close(self) -> None:
        """Delete what was unpacked for this engine; it cannot be called afterwards."""
        self._resources.close()


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    classes: Iterable[type] = (),
    report: Callable[[str], object] = lambda line: None,
) -> Engine:
    """Return the engine of an artefact, a folder or a .pt2 file.

    `classes`: those of the method's estimator and schedule that are not the package's; no artefact makes this import anything.
    Schema, files, versions and device are checked first. Raises ArtifactError for what is damaged, TargetError for what was built for
    another machine, BackendError where its back end is not installed.
    """
    path, device = Path(path), torch.device(device)
    with ExitStack() as resources:
        folder = resources.enter_context(opened(path))
        manifest = read_manifest(folder)
        method = decode_method(manifest.method, classes)
        _check_phases(manifest, method)
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
        return Engine(_loaded(manifest, programs, weights, device), resources.pop_all(), method)


def _check_phases(manifest: Manifest, method: Method) -> None:
    """ArtifactError where the method has a phase that no program is for."""
    phases = method.schedule.branches
    there = {"FULL", "ESTIMATE"} if manifest.config.dispatch == "cond" else set(manifest.programs)
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
