"""Export: a model becomes an artefact: programs of one back end, weights stored once, and a manifest; checked before it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

import rfc
import rfc_fx
from rfc.encoding import classes_of
from rfc.method import Method
from rfc.phase import VERIFY
from rfc_export.artifact import file_spec, write_manifest, writing
from rfc_export.backends import Backend, Built
from rfc_export.backends import backend as backend_of
from rfc_export.calls import RETURN_DICT, call_spec, fixed_name
from rfc_export.errors import ExportError
from rfc_export.manifest import WEIGHTS, Manifest
from rfc_export.methods import check_method, encode_method, name_of
from rfc_export.model_facts import dtype_of_model, plain_config
from rfc_export.parity import check_parity
from rfc_export.portable import STEP, Portable, Weights, portable_cond, portable_host
from rfc_export.runtime import load
from rfc_export.seal import public_key
from rfc_export.specs import BackendName, DecisionSpec, ModelSpec, PlanSpec, PoolSpec, ProgramSpec, SlotSpecs
from rfc_export.target import built_with, target_of
from rfc_export.weights import weight_spec
from rfc_fx.capture.export import args_and_kwargs, named_arguments
from rfc_fx.ir.config import Config
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.phase import PREFIX
from rfc_fx.ir.progress import progress_slots
from rfc_fx.passes.build import CompiledSet
from rfc_fx.passes.lower_host import lower_host

Report = Callable[[str], object]


def export(
    model: nn.Module,
    path: str | Path,
    *,
    backend: BackendName,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    method: Method | None = None,
    config: Config | None = None,
    sampler: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    sign: Path | None = None,
    report: Report = lambda line: None,
) -> Path:
    """Write an artefact to `path`, a folder or a file that ends in .pt2, and return it.

    `model` is a transformer, which is transformed with `method` and `config` first, or a CachedModel, which has its own (`config` may give
    its engine another `dispatch` or `hoist`). `example_inputs` are the arguments of one call; the engine answers calls of these shapes.
    `config.hoist` None is True with host dispatch. `sampler`: what `rfc-fx run` needs to draw. `report` takes a line at the begin of each
    stage. `sign`: an Ed25519 private key (PEM), for whoever loads with `trusted=`.

    The engine is opened and held against the model over a few steps before anything is there under `path`; what would lose or freeze
    state is refused. Raises ExportError, BackendError (the back end is not installed) and all that `rfc_fx.transform` raises.
    """
    path = Path(path)
    if sign is not None:
        public_key(sign)  # refused before anything is built
    maker = backend_of(backend)
    config = _config(model, config)
    check_method(model.method if isinstance(model, rfc_fx.CachedModel) else method or rfc.RFC(), config.dispatch)
    cached = _cached(model, example_inputs, method, config)
    compiled = cached.compiled
    if compiled.captured.parallel is not None or compiled.captured.decided_with is not None:
        raise ExportError(
            f"export: the programs of {cached.model_name} hold collectives of a group of ranks, which an engine does not have; export the "
            "model before enable_parallelism and without group="
        )
    maker.check(compiled.device)
    arguments = _arguments(cached, example_inputs)
    call = call_spec(compiled, arguments, cached.call_signature, cached.timestep_argument)
    if RETURN_DICT in call.parameters and compiled.captured.outputs.type is tuple and RETURN_DICT not in arguments:
        raise ExportError("export: captured with return_dict=False; transform anew with example inputs, without return_dict")
    weights = Weights.of(compiled)
    report("making programs")
    if config.dispatch == "cond":
        layout = Layout(compiled.guarded.slots | progress_slots())
        programs = portable_cond(compiled, weights, maker.WRITES)
    else:
        host = lower_host(compiled.guarded, compiled.timestep, hoists=config.hoist is True, pools=maker.POOLS, writes=maker.WRITES)
        layout, programs = host.layout, portable_host(compiled, host, weights)
    _refuse_lost_state(layout, programs, maker)
    stored = _stored(weights, compiled, arguments)
    with writing(path, overwrite=overwrite) as folder:
        report("writing weights")
        save_file(stored, folder / WEIGHTS)
        built = maker.build(programs, weights.tensors, folder, compiled.device, report)
        files = {file.name: file_spec(file) for file in sorted(folder.iterdir())}
        manifest = Manifest(
            schema_version=2,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            model=ModelSpec(
                model_class=cached.model_name,
                config=plain_config(cached.model),
                dtype=name_of(dtype_of_model(cached.model)),
                weights_sha256=files[WEIGHTS].sha256,
            ),
            method=encode_method(cached.method),
            backend=backend,
            config=replace(config, granularity=compiled.analysis.granularity),
            programs={phase: _program_spec(program, built[phase]) for phase, program in programs.items()},
            state=_state(layout, programs),
            pools=[
                PoolSpec(name=pool.name, dtype=name_of(pool.spec.dtype), shape=list(pool.spec.shape), slots=list(pool.slots))
                for pool in layout.pools
            ],
            decision=_decision(cached, programs),
            call=call,
            plan=PlanSpec(
                sites=compiled.plan.sites,
                state_bytes=sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in layout.slots.values()),
                full_flops=compiled.plan.full_flops,
                estimate_flops=compiled.plan.estimate_flops,
                phase_flops=dict(compiled.plan.phase_flops),
            ),
            sampler=None if sampler is None else dict(sampler),
            built_with=built_with() | maker.versions(),
            target=target_of(compiled.device),
            files=files,
            weights={name: weight_spec(tensor) for name, tensor in stored.items()},
            options={key: value for one in built.values() for key, value in one.options.items()},
        )
        write_manifest(folder, manifest, sign)
        report("checking the engine against the model")
        engine = load(folder, device=compiled.device, classes=classes_of(cached.method), trust=True)
        check_parity(engine, cached, arguments)
        engine.close()
    return path


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


def _cached(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None,
    method: Method | None,
    config: Config,
) -> rfc_fx.CachedModel:
    if not isinstance(model, rfc_fx.CachedModel):
        if example_inputs is None:
            raise ExportError("export: example_inputs are needed: the arguments of one call, as a mapping or a tuple")
        return rfc_fx.transform(model, method, example_inputs=example_inputs, config=replace(config, dispatch="host", hoist=None))
    if method is not None:
        raise ExportError("export: a CachedModel has its own method; give it to rfc_fx.transform")
    if example_inputs is not None:
        args, kwargs = args_and_kwargs(example_inputs)
        model.trace(*args, **kwargs)
    elif not len(model.cache):
        raise ExportError("export: nothing was captured yet; pass example_inputs, the arguments of one call")
    return model


def _arguments(cached: rfc_fx.CachedModel, example_inputs: Mapping[str, Any] | tuple[Any, ...] | None) -> dict[str, Any]:
    if example_inputs is None:
        raise ExportError("export: pass example_inputs, the arguments of one call that the engine is for")
    args, kwargs = args_and_kwargs(example_inputs)
    return named_arguments(cached.call_signature, args, kwargs)


def _refuse_lost_state(layout: Layout, programs: Mapping[str, Portable], maker: Backend) -> None:
    """ExportError where a slot does not enter, or where the back end needs it returned and it is not."""
    entering = {spec.name for program in programs.values() for spec in program.inputs if spec.kind in ("state", "progress", "log")}
    pooled = {spec.name for program in programs.values() for spec in program.inputs if spec.kind == "pool"}
    entering |= {slot for pool in layout.pools if pool.name in pooled for slot in pool.slots}
    returned = {spec.name for program in programs.values() for spec in program.outputs if spec.kind == "next"}
    if lost := [slot for slot in layout.slots if slot not in entering | returned]:  # what is returned alone, nothing reads
        raise ExportError(f"export: no program takes the state {', '.join(lost[:3])}; it would be lost; please report this")
    if maker.WRITES == "returned" and (frozen := [slot for slot in layout.slots if slot not in returned]):
        raise ExportError(f"export: no program returns the state {', '.join(frozen[:3])}; it would be frozen; please report this")


def _stored(weights: Weights, compiled: CompiledSet, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch.utils._pytree as pytree

    leaves = pytree.tree_leaves(dict(arguments))
    fixed = {fixed_name(position): leaves[position] for position in compiled.captured.decided if isinstance(leaves[position], Tensor)}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in (weights.tensors | fixed).items()}


def _program_spec(program: Portable, built: Built) -> ProgramSpec:
    return ProgramSpec(
        file=built.file, entry=built.entry, inputs=program.inputs, outputs=program.outputs, weights=program.weights, flops=program.flops
    )


def _state(layout: Layout, programs: Mapping[str, Portable]) -> list[SlotSpecs]:
    rows = {pool.name: pool.slots for pool in layout.pools}

    def reads(program: Portable) -> set[str]:
        own = {spec.name for spec in program.inputs if spec.kind in ("state", "progress", "log")}
        return own | {slot for spec in program.inputs if spec.kind == "pool" for slot in rows[spec.name]}

    read = {phase: reads(program) for phase, program in programs.items()}
    return [
        SlotSpecs(
            name=name,
            dtype=name_of(spec.dtype),
            shape=list(spec.shape),
            init="zeros",
            written_by=[phase for phase, program in programs.items() if name in program.written],
            read_by=[phase for phase in programs if name in read[phase]],
            pool=layout.places[name][0].name if name in layout.places else None,
            row=layout.places[name][1] if name in layout.places else None,
        )
        for name, spec in layout.slots.items()
    ]


def _decision(cached: rfc_fx.CachedModel, programs: Mapping[str, Portable]) -> DecisionSpec:
    schedule, numbers = cached.method.schedule, dict[str, list[Any]]()
    for name, tensor in schedule.numbers().items():
        numbers[name] = ["inf" if math.isinf(one) else one for one in tensor.flatten().tolist()]
    where = next((phase for phase in (PREFIX, VERIFY.name, STEP) if phase in programs), None)
    return DecisionSpec(program=where, index=0, rule=type(schedule).__name__, numbers=numbers)
