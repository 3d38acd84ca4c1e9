"""Runtime: an engine stands where the transformer stood. It runs the programs of an artefact; the model's Python is not needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfc.method import Method
from rfc_export.backends import backend
from rfc_export.calls import RETURN_DICT
from rfc_export.engine_files import opened
from rfc_export.errors import MachineCodeWarning
from rfc_export.loaded import LoadedProgram, LoadedSet, check_phases, loaded_set, read_weights
from rfc_export.manifest import WEIGHTS
from rfc_export.methods import decode_method, dtype_of
from rfc_export.portable import STEP
from rfc_export.reading import read_manifest
from rfc_export.seal import Key
from rfc_export.target import check_target, is_on, numbered
from rfc_fx.errors import SignatureError
from rfc_fx.ir.plan import Plan
from rfc_fx.ir.program import Argument, ProgramSet
from rfc_fx.runtime.calls import Call, CallPattern, new_call
from rfc_fx.runtime.context import CondContext, Context
from rfc_fx.runtime.generations import Generations
from rfc_fx.runtime.step_model import StepModel

KEY = 0  # an engine answers one call signature


class EngineContext(Context):
    """A context of a host-dispatched engine. Where new state is written beside the old, the two change places after a program that did."""

    def __init__(self, compiled: LoadedSet) -> None:
        super().__init__(compiled)
        self.beside: dict[str, Tensor] = compiled.layout.allocate(compiled.device)[0] if compiled.returns_state else {}

    def memory(self) -> dict[Argument, Tensor]:
        """What programs read and write here from step to step, and where new state goes."""
        return super().memory() | _named("next", self.beside)

    def tensors(self) -> Iterable[Tensor]:
        """All that is held from step to step."""
        return (*self.state.values(), *self.beside.values())

    def ran(self, phase: str) -> None:
        """Exchange the memory of what the program wrote."""
        for name in (written := self.compiled.programs[phase].returned):  # type: ignore[attr-defined]
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

    def is_touched(self) -> bool:
        """Never."""
        return False

    @property
    def is_empty(self) -> bool:
        """Never."""
        return False

    def visitors(self) -> tuple[list[str], None]:
        """None: there is no model to put hooks on."""
        return [], None

    def drop(self) -> None:
        """Nothing is captured anew."""


class Engine(StepModel):
    """An exported model: the same call, contexts, `reset()`, `stats` and `summary()` as the CachedModel it was made from.

    It has the model's `config`, `dtype` and `device`, and can stand in a diffusers pipeline. Made by `rfc_export.load`.
    """

    def __init__(self, loaded: LoadedSet, method: Method) -> None:
        manifest = loaded.manifest
        timestep = manifest.call.timestep
        name = manifest.model.model_class
        programs, generations = EngineCalls(loaded, timestep), Generations(name, engine_context)
        super().__init__(name, loaded.expected.signature, timestep, method, programs, generations)
        self.manifest = manifest
        self._loaded, self._calls = loaded, programs
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
        if (device is not None and not is_on(self.device, torch.device(device))) or (dtype is not None and dtype != self.dtype):
            raise SignatureError(f"{self.model_name}: an engine stays {self.dtype} on {self.device}; export another for {device or dtype}")
        return self

    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE."""
        return self._loaded.plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's; SignatureError where the engine was closed."""
        if not self._loaded.programs:
            raise SignatureError(f"{self.model_name}: this engine was closed; load it again")
        result = self._cond_step(args, kwargs) if self._loaded.counts_itself else super().forward(*args, **kwargs)
        return self._wrapped(result, args, kwargs)

    @torch.no_grad()
    def _cond_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.driver.programs.recognise(args, kwargs)
        context = self.driver.generations.of(call)[1]
        numbers = _named("numbers", self.driver.rules.numbers_on(self.device))
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
        """Let go of programs and state; the engine cannot be called afterwards."""
        self.reset()
        self._loaded = self._calls.loaded = replace(self._loaded, programs={})


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    classes: Iterable[type] = (),
    trusted: Iterable[Key] | None = None,
    trust: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Engine:
    """Return the engine of an artefact, a folder or a .pt2 file.

    `classes`: those of the method's estimator and schedule that are not the package's; no artefact makes this import anything.
    `trusted`: public keys (Ed25519: PEM files, or 64 hexadecimal digits); an engine that none of them signed (`export(sign=)`) is refused
    before its programs are read. `trust`: machine code (aoti) is loaded without the MachineCodeWarning that it otherwise gets unsigned.
    Manifest, files, weights, versions and device are checked before any program is opened. Raises ArtifactError for what is damaged,
    TrustError for what nobody signed who is trusted, TargetError for what was built for another machine, BackendError where its back end
    is not installed.
    """
    path, device = Path(path), numbered(torch.device(device))
    with opened(path) as files:
        manifest = read_manifest(files, trusted)
        method = decode_method(manifest.method, classes)
        check_phases(manifest, method)
        check_target(str(path), manifest, device)
        maker = backend(manifest.backend)
        maker.check(device)
        report("reading files")
        contents = {name: files.read(name, spec).numpy().tobytes() for name, spec in manifest.files.items() if name != WEIGHTS}
        weights = read_weights(files, manifest, device)
    if manifest.backend == "aoti" and trusted is None and not trust:
        warn_of_machine_code(path)
    report("opening programs")
    runs = maker.open(path, contents, manifest, weights, device)
    programs = {phase: LoadedProgram(phase, spec, runs[phase]) for phase, spec in manifest.programs.items()}
    return Engine(loaded_set(manifest, programs, weights, device), method)


def warn_of_machine_code(path: Path) -> None:
    """Say, once for each path, that programs of machine code can do whatever their user may."""
    warnings.warn(
        f"{path}: its programs are machine code, which runs with all your rights; load only what you or somebody you trust exported: "
        "pass trusted=[their public key] for signed engines, or trust=True",
        MachineCodeWarning,
        stacklevel=3,
    )
