"""Whole pictures: a pipeline as a folder of engines, with tokenizers and scheduler, that draws without the models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rfc.files import FileError, read_json
from rfc.method import Method
from rfc_export.artifact import writing
from rfc_export.backends import Report
from rfc_export.backends import backend as backend_of
from rfc_export.building import Stages
from rfc_export.errors import ArtifactError, ExportError
from rfc_export.example_calls import Wanted, calls_of_first_step, distinct, pipeline_sources, placed
from rfc_export.exporter import export
from rfc_export.parity import TOLERANCE
from rfc_export.plain import Part, export_plain
from rfc_export.plain_component import leaves, load_component
from rfc_export.runtime import Engine, load
from rfc_export.seal import Key
from rfc_export.specs import BackendName
from rfc_fx.capture.export import named_arguments
from rfc_fx.ir.config import Config
from rfc_fx.pipelines.accelerated import transformers_of
from rfc_fx.tools.load import path_problem
from rfc_fx.tools.pipeline.folder import DENOISER
from rfc_fx.tools.pipeline.source import refusing

INDEX = "model_index.json"
ENTRY = ["rfc_export", "PipelineEngine"]
"""What model_index.json has for a component that is an engine."""

PartCalls = dict[tuple[str, str], list[dict[str, Any]]]
"""Calls by component and method."""


def is_whole(path: Path) -> bool:
    """Whether a folder holds a whole pipeline of engines, and not one engine."""
    return path_problem(path) is None and (path / INDEX).is_file()


def export_whole(
    name: str,
    path: Path,
    backend: BackendName,
    wanted: Wanted,
    *,
    dtype: torch.dtype,
    device: torch.device,
    method: Method,
    config: Config,
    steps: int | None = None,
    overwrite: bool = False,
    sign: Path | None = None,
    report: Report = lambda line: None,
) -> None:
    """Write the engines of a pipeline's parts to `path`: the denoiser with its cache, what else is called as it is.

    Every part answers the calls that the pipeline makes at the wanted sizes and batches, for as many tokens as its prompts have.
    A method that needs noise levels (`rfc.LogSNR` alone) is placed for those of `steps` steps (None: the pipeline's own number)
    at the first size; in Python an engine places it anew for every generation.
    Raises ExportError where a part cannot be exported; nothing is left then.
    """
    sources = list(pipeline_sources(name, dtype, device, wanted))
    pipe = sources[0].pipe
    if len(denoisers := transformers_of(pipe)) != 1:
        raise ExportError(f"{name}: has {len(denoisers)} denoisers ({', '.join(denoisers)}), a whole pipeline is exported with one")
    ((denoiser, model),) = denoisers.items()
    diffusers_model: Any = model
    calls, parts = [], PartCalls()
    for source in sources:
        calls += calls_of_first_step(source, steps or source.call.steps)
        if not method.schedule.is_bound:
            method = placed(name, method, pipe.scheduler)
        with _recording(pipe, denoiser, parts), refusing(source):
            source.draw(model, 0, 1, lambda: None)
    if encoding := [part for part, function in parts if function == "encode"]:
        raise ExportError(f"export: {name}: calls {encoding[0]}.encode: a whole pipeline draws from noise; export its denoiser alone")
    stages = Stages(report)
    with writing(path, overwrite=overwrite, mark=INDEX) as folder:
        export(
            model,
            folder / denoiser,
            backend=backend,
            example_inputs=list(distinct(calls, model)),
            method=method,
            config=config,
            sign=sign,
            report=report,
        )
        diffusers_model.save_config(folder / denoiser)  # what a pipeline's folder says of its denoiser
        for (part, function), recorded in parts.items():
            _export_part(pipe, part, function, recorded, folder / part, backend, sign, stages)
        exported = {denoiser, *(part for part, _ in parts)}
        _write_rest(pipe, folder, exported)


def _export_part(
    pipe: Any, name: str, function: str, calls: list[dict[str, Any]], path: Path, backend: BackendName, sign: Path | None, stages: Stages
) -> None:
    """One component as an artefact, held against the module for each call."""
    module: nn.Module = getattr(pipe, name)
    part, own = Part(module, function), distinct(calls, module)
    export_plain(part, path, backend, backend_of(backend), own, sign, stages)
    stages(f"checking {name}")
    component = load_component(path, next((one.device for one in module.parameters()), torch.device("cpu")), trust=True)
    most = TOLERANCE.get(component.manifest.model.dtype, TOLERANCE["float32"])
    for call in own:
        with torch.no_grad():
            pairs = zip(leaves(component(**call)), leaves(part(**call)), strict=True)
        error = max(float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)) for a, b in pairs)
        if not error <= most:
            raise ExportError(f"export: {name} is off by {error:.1e} of the module's output, at most {most:g} is rounding")


@contextmanager
def _recording(pipe: Any, denoiser: str, parts: PartCalls) -> Iterator[None]:
    """Note the calls of every component but the denoiser; of a VAE those of encode and decode."""
    undo: list[Callable[[], object]] = []

    def noted(name: str, module: nn.Module, function: str) -> Any:
        expected = signature(getattr(module, function))

        def note(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given = named_arguments(expected, args, kwargs)
            given.pop("generator", None)
            parts.setdefault((name, function), []).append(given)

        return note

    for name, module in pipe.components.items():
        if name == denoiser or not isinstance(module, nn.Module):
            continue
        if callable(getattr(module, "decode", None)):
            for function in ("encode", "decode"):
                own, note = getattr(module, function), noted(name, module, function)

                def called(*args: Any, _own: Any = own, _note: Any = note, **kwargs: Any) -> Any:
                    _note(args, kwargs)
                    return _own(*args, **kwargs)

                setattr(module, function, called)
                undo.append(partial(delattr, module, function))
        else:
            note = noted(name, module, "forward")
            hook = module.register_forward_pre_hook(lambda _, args, kwargs, note=note: note(args, kwargs), with_kwargs=True)
            undo.append(hook.remove)
    try:
        yield
    finally:
        for one in undo:
            one()


def _write_rest(pipe: Any, folder: Path, exported: set[str]) -> None:
    """Tokenizers, the scheduler and the index."""
    import diffusers

    index: dict[str, Any] = {"_class_name": type(pipe).__name__, "_diffusers_version": diffusers.__version__}
    for name, entry in pipe.config.items():
        if name.startswith("_"):
            continue
        component = getattr(pipe, name, None)
        if not isinstance(entry, list | tuple):
            index[name] = entry
        elif name in exported:
            index[name] = ENTRY
        elif component is None or isinstance(component, nn.Module):  # a module that was never called
            index[name] = [None, None]
        else:
            component.save_pretrained(folder / name)
            index[name] = list(entry)
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


@dataclass(frozen=True)
class WholeFolder:
    """A folder of `export_whole`, of which the index has been read."""

    path: Path
    denoiser: str
    others: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> WholeFolder:
        """The names of the engines in it; ArtifactError where there are none."""
        try:
            index = read_json(path / INDEX)
        except FileError as error:
            raise ArtifactError(f"{path / INDEX}: {error}; copy the folder again") from error
        engines = [name for name, entry in index.items() if entry == ENTRY] if isinstance(index, dict) else []
        denoisers = [name for name in engines if DENOISER in name]
        if len(denoisers) != 1 or not all(name.isidentifier() for name in engines):
            raise ArtifactError(
                f"{path / INDEX}: names {len(denoisers)} engines as transformer, expected one; export it with rfc-fx export --whole, or "
                "pass the folder of one engine"
            )
        return cls(path, denoisers[0], tuple(name for name in engines if name != denoisers[0]))

    def load(
        self, device: torch.device, *, classes: tuple[type, ...] = (), trusted: tuple[Key, ...] | None = None, trust: bool = False
    ) -> tuple[Engine, dict[str, nn.Module]]:
        """The denoiser's engine, and the other parts by name; machine code is warned of once."""
        engine = load(self.path / self.denoiser, device=device, classes=classes, trusted=trusted, trust=trust)
        is_warned = trust or engine.manifest.backend == "aoti"
        return engine, {name: load_component(self.path / name, device, trusted, is_warned) for name in self.others}
