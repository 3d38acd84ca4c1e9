"""Programs of one call signature, before a back end builds them, and what a manifest says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.utils._pytree as pytree
from torch import Tensor, nn

import rfc_fx
from rfc.method import Method
from rfc.phase import VERIFY
from rfc_export.backends import Backend, Built
from rfc_export.calls import RETURN_DICT, call_spec, fixed_name
from rfc_export.errors import ExportError
from rfc_export.methods import name_of
from rfc_export.portable import STEP, Portable, portable_cond, portable_host
from rfc_export.set_spec import DecisionSpec, PlanSpec, PoolSpec, ProgramSetSpec, SlotSpecs
from rfc_export.specs import CallSpec, ProgramSpec
from rfc_export.weight_names import Weights
from rfc_fx.capture.export import args_and_kwargs, named_arguments
from rfc_fx.ir.config import Config
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.phase import PREFIX
from rfc_fx.ir.program import as_read
from rfc_fx.ir.progress import progress_slots
from rfc_fx.passes.build import CompiledSet
from rfc_fx.passes.lower_host import lower_host

Example = Mapping[str, Any] | tuple[Any, ...]
"""The arguments of one call."""


def cached_for(model: nn.Module, example: Example, method: Method | None, config: Config, *, is_first: bool) -> rfc_fx.CachedModel:
    """The CachedModel that was captured for this call: one for each, so that plain numbers which differ are constants of each."""
    if not isinstance(model, rfc_fx.CachedModel):
        return rfc_fx.transform(model, method, example_inputs=example, config=replace(config, dispatch="host", hoist=None))
    if is_first:
        args, kwargs = args_and_kwargs(example)
        model.trace(*args, **kwargs)
        return model
    options = replace(model.options, dispatch="host", hoist=None)
    return rfc_fx.transform(model.model, model.method, example_inputs=example, config=options)


@dataclass(frozen=True)
class CallPrograms:
    """The programs for one call, the model that they were made from, and the call."""

    cached: rfc_fx.CachedModel
    arguments: dict[str, Any]
    call: CallSpec
    layout: Layout
    programs: dict[str, Portable]

    compiled: CompiledSet

    @classmethod
    def of(
        cls, cached: rfc_fx.CachedModel, example: Example, config: Config, maker: Backend, weights: Weights, number: int
    ) -> CallPrograms:
        """Lower what was captured for the example; its weights are noted. ExportError where state would be lost or frozen."""
        compiled = cached.compiled
        if compiled.captured.parallel is not None or compiled.captured.decided_with is not None:
            raise ExportError(
                f"export: the programs of {cached.model_name} hold collectives of a group of ranks, which an engine does not have; export "
                "the model before enable_parallelism and without group="
            )
        args, kwargs = args_and_kwargs(example)
        arguments = named_arguments(cached.call_signature, args, kwargs)
        weights.take(compiled.captured)
        call = call_spec(compiled.captured, arguments, cached.call_signature, cached.timestep_argument, number)
        if RETURN_DICT in call.parameters and compiled.captured.outputs.type is tuple and RETURN_DICT not in arguments:
            raise ExportError("export: captured with return_dict=False; transform anew with example inputs, without return_dict")
        if config.dispatch == "cond":
            layout = Layout(compiled.guarded.slots | progress_slots())
            programs = portable_cond(compiled, weights, maker.WRITES)
        else:
            host = lower_host(compiled.guarded, compiled.timestep, hoists=config.hoist is True, pools=maker.POOLS, writes=maker.WRITES)
            layout, programs = host.layout, portable_host(compiled, host, weights)
        refuse_lost_state(layout, programs, maker.WRITES)
        leaves = pytree.tree_leaves(dict(arguments))
        for position in compiled.captured.decided:
            if isinstance(leaves[position], Tensor):
                weights.tensors[fixed_name(position, number)] = as_read(leaves[position])
        return cls(cached, arguments, call, layout, programs, compiled)

    def spec(self, built: Mapping[str, Built]) -> ProgramSetSpec:
        """What the manifest says of them."""
        plan = self.compiled.plan
        return ProgramSetSpec(
            programs={phase: _program_spec(program, built[phase]) for phase, program in self.programs.items()},
            state=_state(self.layout, self.programs),
            pools=[
                PoolSpec(name=pool.name, dtype=name_of(pool.spec.dtype), shape=list(pool.spec.shape), slots=list(pool.slots))
                for pool in self.layout.pools
            ],
            decision=_decision(self.cached, self.programs),
            call=self.call,
            plan=PlanSpec(
                sites=plan.sites,
                state_bytes=sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in self.layout.slots.values()),
                full_flops=plan.full_flops,
                estimate_flops=plan.estimate_flops,
                phase_flops=dict(plan.phase_flops),
            ),
        )


def refuse_lost_state(layout: Layout, programs: Mapping[str, Portable], writes: Literal["in_place", "returned"]) -> None:
    """ExportError where a slot does not enter, or where the back end needs it returned and it is not."""
    entering = {spec.name for program in programs.values() for spec in program.inputs if spec.kind in ("state", "progress", "log")}
    pooled = {spec.name for program in programs.values() for spec in program.inputs if spec.kind == "pool"}
    entering |= {slot for pool in layout.pools if pool.name in pooled for slot in pool.slots}
    returned = {spec.name for program in programs.values() for spec in program.outputs if spec.kind == "next"}
    if lost := [slot for slot in layout.slots if slot not in entering | returned]:  # what is returned alone, nothing reads
        raise ExportError(f"export: no program takes the state {', '.join(lost[:3])}; it would be lost; please report this")
    if writes == "returned" and (frozen := [slot for slot in layout.slots if slot not in returned]):
        raise ExportError(f"export: no program returns the state {', '.join(frozen[:3])}; it would be frozen; please report this")


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
    by_pass = "ByPass" if schedule.for_pass("uncond") is not schedule else ""  # which runtimes with one list for all contexts do not know
    return DecisionSpec(program=where, index=0, rule=type(schedule).__name__ + by_pass, numbers=numbers)
