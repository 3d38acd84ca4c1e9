"""The path of the data for one call signature: capture, find_sites, outline, guard, verify, specialize and lower."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc.method import Method
from rfc.phase import ESTIMATE, FULL
from rfc.predictor import Predictor
from rfc.state import SlotSpec
from rfc_fx.capture.export import Captured, capture
from rfc_fx.errors import RFCError, SignatureError
from rfc_fx.ir.config import Config
from rfc_fx.ir.fusion import keep_overwrites_apart
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.ops import flops, value
from rfc_fx.ir.phase import HOISTED_PHASES, INVARIANT, PREFIX, TIMESTEP, step_phases
from rfc_fx.ir.plan import Plan, SlotRow
from rfc_fx.ir.program import CLOCK_SPECS, Argument, CondStep, Program, as_read, unflattener
from rfc_fx.ir.torch_versions import warn_of_wrong_code
from rfc_fx.passes.graft import capture_skipped, graft
from rfc_fx.passes.guard import Guarded, guard
from rfc_fx.passes.hoist import dependence
from rfc_fx.passes.lower_cond import Cond, lower_cond
from rfc_fx.passes.lower_host import Host, lower_host
from rfc_fx.passes.outline import outline
from rfc_fx.passes.pair_complex import pair_complex
from rfc_fx.passes.prefix import prefix_nodes
from rfc_fx.passes.spread import refuse_methods, refuse_silent_attention
from rfc_fx.passes.traffic import digest, traffic_of
from rfc_fx.passes.verify import verify_guarded
from rfc_fx.sites.find import watched
from rfc_fx.sites.granularity import alternatives, sites_within
from rfc_fx.sites.residual import SiteAnalysis

log = logging.getLogger("rfc_fx")


@dataclass(frozen=True)
class CompiledSet:
    """Everything made for one signature: the graphs, the programs and the plan."""

    captured: Captured
    analysis: SiteAnalysis
    guarded: Guarded
    lowered: Host | Cond
    timestep: str | None
    """Placeholder that carries the timestep, None when the model has no such argument."""
    plan: Plan
    device: torch.device
    seconds: float

    @property
    def programs(self) -> dict[str, Program]:
        """The programs by phase."""
        return self.lowered.programs

    @property
    def layout(self) -> Layout:
        """Where the state lies."""
        return self.lowered.layout

    @property
    def latent(self) -> str:
        """Name of the argument that the sampler moves."""
        return self.captured.latent

    @property
    def clock_size(self) -> int:
        """Numbers of the clock: k, N, n, and the schedule's weights."""
        return len(CLOCK_SPECS) + self.guarded.method.schedule.num_weights

    @property
    def counts_itself(self) -> bool:
        """Whether step numbers and decisions are state of the graph."""
        return isinstance(self.lowered, Cond)

    @property
    def decided(self) -> Collection[int]:
        """Flat arguments whose values the model's forward read: the programs are for these values."""
        return self.captured.decided

    @property
    def answers(self) -> Sequence[Any]:
        """What the forward asked of lifted numbers (`rfc_fx.capture.lifted.Answer`)."""
        return self.captured.answers

    @property
    def outputs(self) -> pytree.TreeSpec:
        """The structure of what the model's forward returns."""
        return self.captured.outputs

    @property
    def step(self) -> CondStep | None:
        """One step as one graph, for `dispatch="cond"`."""
        return self.lowered.step if isinstance(self.lowered, Cond) else None

    @cached_property
    def whole_plan(self) -> Plan:
        """The plan with what other granularities and types would take, and what depends on what."""
        depends = dependence(self.guarded, self.timestep, prefix_nodes(self.guarded))
        return replace(self.plan, alternatives=alternatives(self.captured, self.guarded.method), dependence=tuple(depends))

    @cached_property
    def placeholders(self) -> list[Argument]:
        """The tensor arguments by the names that programs have for them."""
        return [("input", name) for name in self.captured.names]

    @cached_property
    def unflatten(self) -> Callable[[Sequence[Tensor]], Any]:
        """Makes what the model's forward returns of flat outputs."""
        return unflattener(self.captured.outputs)

    @cached_property
    def digest(self) -> dict[str, str]:
        """A digest of each program, equal on all ranks of a group."""
        return digest(self.programs)

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        """The tensor arguments in the order of the placeholders."""
        return [as_read(leaves[position]) for position in self.captured.inputs]


def build(
    model: nn.Module,
    arguments: Mapping[str, Any],
    method: Method,
    config: Config,
    timestep: str | None,
    predictor: Predictor | None = None,
    group: Any = None,
) -> CompiledSet:
    """model -> graph -> sites -> one call per site -> guarded graph -> programs. `predictor` stands in for the blocks.

    `group`: the ranks that take one decision for batches of their own (torch.distributed.ProcessGroup).
    """
    start = time.perf_counter()
    when = arguments.get(timestep) if timestep is not None else None
    if when is not None and not isinstance(when, Tensor):
        raise SignatureError(
            f"{type(model).__name__}: {timestep} must be a tensor, got {type(when).__name__}; "
            "anything else would be a constant of the graph, and every step would be captured anew"
        )
    keep_overwrites_apart()
    warn_of_wrong_code()
    captured = replace(pair_complex(capture(model, arguments)), predictor=predictor, decided_with=group)
    refuse_methods(captured, method)
    refuse_silent_attention(captured)
    analysis = sites_within(captured, config, method)
    method = method.within(analysis.granularity)
    outlined = outline(captured, analysis.sites)
    guarded = guard(outlined, watched(analysis.sites, captured), method)
    if predictor is not None:
        guarded = graft(guarded, capture_skipped(captured, predictor, arguments, analysis.sites))
    verify_guarded(guarded)
    named = next((place for place, name in captured.names.items() if name == timestep), None)
    lowered = (
        lower_host(guarded, named, regional=config.regional, hoists=config.hoist is True)
        if config.dispatch == "host"
        else lower_cond(guarded, named)
    )
    slots = lowered.layout.slots
    device = guarded.watched.I.meta["val"].device
    check_types(type(model).__name__, slots, device)
    compiled = CompiledSet(
        captured, analysis, guarded, lowered, named, _plan(guarded, lowered.programs, slots), device, time.perf_counter() - start
    )
    log.info(
        "%s: %d sites, %d rejected, %.1f MiB of state per context, ESTIMATE %.1f %% of FULL's FLOPs, captured in %.1f s",
        type(model).__name__,
        len(guarded.sites),
        len(analysis.rejected),
        compiled.plan.state_bytes / 2**20,
        100 * compiled.plan.estimate_share,
        compiled.seconds,
    )
    return compiled


def check_types(model: str, slots: Mapping[str, SlotSpec], device: torch.device) -> None:
    """RFCError where a device cannot compute in a type of the state: float8 needs sm_89."""
    floats = {spec.dtype for spec in slots.values()} & {torch.float8_e4m3fn, torch.float8_e5m2}
    if device.type != "cuda" or not floats or (capability := torch.cuda.get_device_capability(device)) >= (8, 9):
        return
    named = ", ".join(str(dtype).removeprefix("torch.") for dtype in floats)
    raise RFCError(
        f"{model}: state in {named} needs a card of sm_89 (Ada, Hopper) or later, got sm_{capability[0]}{capability[1]}; "
        "choose int8, which takes as much memory"
    )


def _plan(guarded: Guarded, programs: dict[str, Program], slots: Mapping[str, SlotSpec]) -> Plan:
    rows = [SlotRow(name, spec.shape, spec.dtype, prod(spec.shape) * spec.dtype.itemsize) for name, spec in slots.items()]
    cost = {phase: flops(program.graph.nodes) for phase, program in programs.items()}
    shared = cost.get(PREFIX, 0) + cost.get(TIMESTEP, 0)
    held = {phase: sum(value(node).nbytes for node in programs[phase].returned()) for phase in HOISTED_PHASES if phase in programs}
    return Plan(
        [site.name for site in guarded.sites],
        rows,
        sum(row.bytes for row in rows),
        cost[FULL.name] + shared,
        cost[ESTIMATE.name] + shared,
        invariant_flops=cost.get(INVARIANT, 0),
        invariant_bytes=held.get(INVARIANT, 0),
        timestep_flops=cost.get(TIMESTEP, 0),
        phase_flops={name: cost[name] + shared for name in step_phases(cost) if name not in (FULL.name, ESTIMATE.name)},
        timestep_bytes=held.get(TIMESTEP, 0),
        traffic=traffic_of(programs),
    )
