"""Runtime: an engine stands where the transformer stood. It runs the programs of an artefact; the model's Python is not needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import rfc_export
from rfc.method import Method
from rfc_export.backends import backend
from rfc_export.calls import RETURN_DICT
from rfc_export.engine_calls import EngineCalls
from rfc_export.engine_context import engine_context, named
from rfc_export.engine_files import opened
from rfc_export.errors import MachineCodeWarning
from rfc_export.exported_module import ExportedModule
from rfc_export.held_weights import read_weights
from rfc_export.loaded import LoadedProgram, LoadedSet, check_phases, loaded_set
from rfc_export.manifest import WEIGHTS
from rfc_export.methods import decode_method
from rfc_export.portable import STEP
from rfc_export.reading import read_manifest
from rfc_export.seal import Key
from rfc_export.target import check_target, numbered
from rfc_fx.errors import RFCError, SignatureError
from rfc_fx.ir.plan import Plan
from rfc_fx.runtime.generations import Generations
from rfc_fx.runtime.step_model import StepModel


class Engine(ExportedModule, StepModel):
    """An exported model: the same call, contexts, `reset()`, `stats` and `summary()` as the CachedModel it was made from.

    It has the model's `config`, `dtype` and `device`, and can stand in a diffusers pipeline. Made by `rfc_export.load`.
    """

    KIND = "an engine"

    def __init__(self, sets: Sequence[LoadedSet], method: Method, path: Path | None = None) -> None:
        manifest = sets[0].manifest
        timestep = manifest.call.timestep
        name = manifest.model.model_class
        self.path, self._is_closed = path, False
        self._calls = EngineCalls(sets, timestep)
        generations = Generations(name, engine_context)
        super().__init__(name, sets[0].expected.signature, timestep, method, self._calls, generations)
        self.manifest = manifest
        self._pipeline_class: type | None = None
        self.__module__ = rfc_export.__name__  # with __class__: what model_index.json of a saved pipeline names
        self.eval()

    @property
    def sets(self) -> Sequence[LoadedSet]:
        """The programs for each call."""
        return self._calls.sets

    @property
    def loaded(self) -> LoadedSet:
        """The programs of the call that was answered last, of the first one before any."""
        return self._calls.sets[self._calls.latest]

    @property
    def programs(self) -> Mapping[str, LoadedProgram]:
        """These programs by phase."""
        return self.loaded.programs

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.loaded.device

    def _get_name(self) -> str:
        return type(self).__name__

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:
        """Copy the artefact to a folder, as `pipe.save_pretrained` asks; `settings` are of other files than its own."""
        from rfc_export.component import copy_engine

        copy_engine(self, Path(save_directory))

    def __getstate__(self) -> dict[str, Any]:
        raise RFCError(f"{self.model_name}: an engine holds programs and state and is not pickled or copied; load it again")

    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE, for the call that was answered last."""
        return self.loaded.plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's; SignatureError where the engine was closed."""
        if self._is_closed:
            raise SignatureError(f"{self.model_name}: this engine was closed; load it again")
        result = self._cond_step(args, kwargs) if self.loaded.counts_itself else super().forward(*args, **kwargs)
        return self._wrapped(result, args, kwargs)

    @torch.no_grad()
    def _cond_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.driver.programs.recognise(args, kwargs)
        context = self.driver.generations.of(call)[1]
        numbers = named("numbers", self.driver.rules.numbers_on(self.device))
        loaded = self._calls.sets[call.key]
        values = context.memory() | numbers | dict(zip(loaded.placeholders, call.inputs, strict=True))
        program = loaded.programs[STEP]
        results = program.run(*(values[key] for key in program.arguments))
        context.ran(STEP)
        return loaded.unflatten(results)

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
        """Let go of programs, weights and state; the engine cannot be called afterwards."""
        self.reset()
        self.driver.generations.drop(range(len(self._calls.sets)))
        self._calls.sets = [replace(loaded, programs={}, weights={}) for loaded in self._calls.sets]
        self._is_closed = True


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    classes: Iterable[type] = (),
    trusted: Iterable[Key] | None = None,
    trust: bool = False,
    mapped: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Engine:
    """Return the engine of an artefact, a folder or a .pt2 file.

    `classes`: those of the method's estimator and schedule that are not the package's; no artefact makes this import anything.
    `trusted`: public keys (Ed25519: PEM files, or 64 hexadecimal digits); an engine that none of them signed (`export(sign=)`) is refused
    before its programs are read. `trust`: machine code (aoti) is loaded without the MachineCodeWarning that it otherwise gets unsigned.
    `mapped`: weights stay in the pages of the file, which several processes share; who may write to the file can change them afterwards.
    Engines of one process that are loaded from the same weights share one set of tensors in any case.
    Manifest, files, weights, versions and device are checked before any program is opened. Raises ArtifactError for what is damaged,
    TrustError for what nobody signed who is trusted, TargetError for what was built for another machine, BackendError where its back end
    is not installed, ValueError for a device that is none.
    """
    sets, method = loaded_sets(path, device=device, classes=classes, trusted=trusted, trust=trust, mapped=mapped, report=report)
    return Engine(sets, method, Path(path))


def loaded_sets(
    path: str | Path,
    *,
    device: str | torch.device,
    classes: Iterable[type] = (),
    trusted: Iterable[Key] | None = None,
    trust: bool = False,
    mapped: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> tuple[list[LoadedSet], Method]:
    """The programs of an artefact for each call, and its method; arguments and errors as of `load`."""
    try:
        path, device = Path(path), numbered(torch.device(device))
    except RuntimeError as error:  # torch lists its kinds of devices at length
        raise ValueError(f"load: device must be one of torch's, such as 'cpu' or 'cuda:1', got {device!r}") from error
    with opened(path) as files:
        manifest = read_manifest(files, trusted)
        method = decode_method(manifest.method, classes)
        check_phases(manifest, method)
        check_target(str(path), manifest, device)
        maker = backend(manifest.backend)
        maker.check(device)
        report("reading files")
        contents = {name: files.read(name, spec).numpy().tobytes() for name, spec in manifest.files.items() if name != WEIGHTS}
        weights = read_weights(files, manifest, device, mapped=mapped)
    if manifest.backend == "aoti" and trusted is None and not trust:
        warn_of_machine_code(path)
    report("opening programs")
    sets = []
    for number, one in enumerate(manifest.sets):
        runs = maker.open(path, contents, one.programs, manifest, weights, device)
        programs = {phase: LoadedProgram(phase, spec, runs[phase]) for phase, spec in one.programs.items()}
        sets.append(loaded_set(manifest, number, programs, weights, device))
    return sets, method


def warn_of_machine_code(path: Path) -> None:
    """Say, once for each path, that programs of machine code can do whatever their user may."""
    warnings.warn(
        f"{path}: its programs are machine code, which runs with all your rights; load only what you or somebody you trust exported: "
        "pass trusted=[their public key] for signed engines, or trust=True",
        MachineCodeWarning,
        stacklevel=4,
    )
