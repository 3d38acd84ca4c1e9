"""Export: a model becomes an artefact: programs of one back end, weights stored once, and a manifest; checked before it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import rfc
import rfc_fx
from rfc.encoding import classes_of
from rfc.method import Method
from rfc_export.added import Existing, existing_engine
from rfc_export.artifact import check_place, file_spec, write_manifest, writing
from rfc_export.backends import Backend, Report
from rfc_export.backends import backend as backend_of
from rfc_export.building import Stages, calling, check_arguments, check_timestep, explained
from rfc_export.call_programs import CallPrograms, Example, cached_for
from rfc_export.errors import ExportError
from rfc_export.manifest import WEIGHTS, Manifest, call_key
from rfc_export.methods import check_method, encode_method, name_of
from rfc_export.model_facts import computing_dtypes, dtype_of_model, plain_config
from rfc_export.parity import check_parity
from rfc_export.runtime import load
from rfc_export.seal import public_key
from rfc_export.specs import BackendName, ModelSpec
from rfc_export.target import built_with, target_of
from rfc_export.weight_names import Weights
from rfc_export.weights import weight_spec
from rfc_fx.io.method_file import method_of
from rfc_fx.ir.config import Config


def export(
    model: nn.Module,
    path: str | Path,
    *,
    backend: BackendName,
    example_inputs: Example | list[Example] | None = None,
    method: Method | str | Path | None = None,
    config: Config | None = None,
    sampler: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    add: bool = False,
    sign: Path | None = None,
    report: Report = lambda line: None,
) -> Path:
    """Write an artefact to `path`, a folder or a file that ends in .pt2, and return it.

    `model` is a transformer, which is transformed with `method` (or the path of a method file) and `config` first, or a CachedModel, which
    has its own (`config` may give its engine another `dispatch` or `hoist`). `example_inputs` are the arguments of one call, as a mapping
    or a tuple, or a list of calls: the engine has programs for each call's shapes, and the weights once. `add=True` adds them to the engine
    that lies at `path`, a folder. `config.hoist` None is True with host dispatch. `sampler`: what `rfc-fx run` needs to draw. `report`
    takes a line at the begin of each stage. `sign`: an Ed25519 private key (PEM), for whoever loads with `trusted=`.

    The engine is opened and held against the model over a few steps of each call before anything is there under `path`; what would lose
    or freeze state is refused, and of whatever fails nothing is left. Raises ExportError, BackendError (the back end is not installed, or
    does not compute in the model's type) and all that `rfc_fx.transform` raises.
    """
    path, chosen = Path(path), method_of(method)
    check_arguments(model, chosen, config)
    if sign is not None:
        public_key(sign)  # refused before anything is built
    maker = backend_of(backend)
    config = _config(model, config)
    own = model.method if isinstance(model, rfc_fx.CachedModel) else chosen or rfc.RFC()
    check_method(own, config.dispatch)
    check_timestep(model, own)
    examples = _examples(model, example_inputs, chosen)
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    maker.check(device)
    maker.check_types(device, computing_dtypes(model))
    check_place(path, overwrite=overwrite or add)
    stages = Stages(report)
    name = model.model_name if isinstance(model, rfc_fx.CachedModel) else type(model).__name__
    with explained(name, stages, backend, config):
        there = existing_engine(path, device, sign) if add else None
        weights = Weights({} if there is None else there.manifest.weights)
        calls: list[CallPrograms] = []
        for number, example in enumerate(examples):
            stages(f"capturing call {number + 1} of {len(examples)}" if len(examples) > 1 else "making programs")
            with calling(name, number, len(examples)):
                cached = cached_for(model, example, chosen, config, is_first=number == 0)
            begin = 0 if there is None else len(there.manifest.sets)
            calls.append(CallPrograms.of(cached, example, config, maker, weights, begin + number))
        facts = _facts(calls, backend, maker, config)
        if there is not None:
            there.check(facts)
        with writing(path, overwrite=overwrite or add) as folder:
            _write(folder, calls, facts, maker, weights, there, sampler, sign, stages)
            stages("checking the engine against the model")
            engine = load(folder, device=device, classes=classes_of(own), trust=True)
            for call in calls:
                check_parity(engine, call.cached, call.arguments)
            engine.close()
    return path


def _facts(calls: Sequence[CallPrograms], backend: BackendName, maker: Backend, config: Config) -> dict[str, Any]:
    """What a manifest says of the whole engine, but for what lies in it."""
    cached, compiled = calls[0].cached, calls[0].compiled
    for call in calls:
        if (own := call.compiled.analysis.granularity) != (first := compiled.analysis.granularity):
            raise ExportError(
                f"export: the state of one call fits as {first}, that of another as {own}; pass Config(granularity={own!r}) for all of them"
            )
    return {
        "model_class": cached.model_name,
        "model_config": plain_config(cached.model),
        "dtype": name_of(dtype_of_model(cached.model)),
        "method": encode_method(cached.method),
        "backend": backend,
        "config": replace(config, granularity=compiled.analysis.granularity),
        "built_with": built_with() | maker.versions(),
        "target": target_of(compiled.device),
    }


def _write(
    folder: Path,
    calls: Sequence[CallPrograms],
    facts: Mapping[str, Any],
    maker: Backend,
    weights: Weights,
    there: Existing | None,
    sampler: Mapping[str, Any] | None,
    sign: Path | None,
    stages: Stages,
) -> None:
    """Write weights, programs and manifest of an engine, or of one to which calls are added."""
    stages("writing weights")
    new = weights.missing()
    specs = ({} if there is None else dict(there.manifest.weights)) | {name: weight_spec(tensor) for name, tensor in new.items()}
    sets = [] if there is None else list(there.manifest.sets)
    options: dict[str, Any] = {} if there is None else dict(there.manifest.options)
    sampler = sampler if there is None else there.manifest.sampler
    known = {call_key(one.call, specs): number for number, one in enumerate(sets)}
    for number, call in enumerate(calls, len(sets)):
        if (same := known.setdefault(call_key(call.call, specs), number)) != number:
            raise ExportError(_twice(number, same, 0 if there is None else len(there.manifest.sets)))
    if there is None:
        save_file(new, folder / WEIGHTS)
    else:
        there.write(folder, new, maker)
    for number, call in enumerate(calls, len(sets)):
        built = maker.build(call.programs, weights.tensors, folder, call.compiled.device, stages, "" if number == 0 else f"-{number}")
        sets.append(call.spec(built))
        options |= {key: value for one in built.values() for key, value in one.options.items()}
    files = {file.name: file_spec(file) for file in sorted(folder.iterdir())}
    stated = dict(facts)
    manifest = Manifest(
        schema_version=3,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelSpec(
            model_class=stated.pop("model_class"),
            config=stated.pop("model_config"),
            dtype=stated.pop("dtype"),
            weights_sha256=files[WEIGHTS].sha256,
        ),
        **stated,
        sets=sets,
        sampler=None if sampler is None else dict(sampler),
        files=files,
        weights=specs,
        options=options,
    )
    write_manifest(folder, manifest, sign)


def _twice(number: int, same: int, there: int) -> str:
    """What is wrong with a call that has the shapes and values of another, `there` of which the engine had before."""
    own = f"export: call {number - there + 1}" + (" of those that are added" if there else "")
    if same < there:
        return f"{own} has the shapes and values of one that the engine answers already (its call {same + 1}); leave it out"
    return f"{own} has the shapes and values of call {same - there + 1}; pass every call once"


def _config(model: nn.Module, config: Config | None) -> Config:
    """The configuration of the engine; ExportError for what an engine does not have, or a CachedModel has otherwise."""
    own = model.options if isinstance(model, rfc_fx.CachedModel) else None
    config = config or own or Config()
    if own is not None and replace(config, dispatch=own.dispatch, hoist=own.hoist) not in (own, Config()):
        raise ExportError(
            f"export: the CachedModel was transformed with {own}, got {config}, which may differ in dispatch and hoist alone; "
            "pass the configuration to rfc_fx.transform"
        )
    if (own or config).decision == "per_sample":
        raise ExportError("export: an engine decides for its batch; transform with decision='batch' and export for a batch of one")
    return replace(config, hoist=config.dispatch == "host" and config.hoist is not False, regional=False, speculate=None)


def _examples(model: nn.Module, example_inputs: Example | list[Example] | None, method: Method | None) -> list[Example]:
    """The calls that the engine is for; ExportError where there are none."""
    cached = model if isinstance(model, rfc_fx.CachedModel) else None
    if cached is not None and method is not None:
        raise ExportError("export: a CachedModel has its own method; give it to rfc_fx.transform")
    if example_inputs is None:
        if cached is not None and not len(cached.cache):
            raise ExportError("export: nothing was captured yet; pass example_inputs, the arguments of one call")
        if cached is not None:
            raise ExportError("export: pass example_inputs, the arguments of one call that the engine is for")
        raise ExportError("export: example_inputs are needed: the arguments of one call, as a mapping or a tuple, or a list of calls")
    examples = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    if not examples:
        raise ExportError("export: example_inputs is an empty list; pass the arguments of at least one call")
    return examples
