"""The path of the data for one call signature: capture, find_sites, outline, guard, verify, specialize and lower."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc.method import CachingMethod
from rfc.predictor import Predictor
from rfc.state import SlotSpec
from rfc_fx.budget import Alternatives, Choice, alternatives, sites_within
from rfc_fx.capture import Captured, capture
from rfc_fx.errors import SignatureError
from rfc_fx.guard import Guarded, guard
from rfc_fx.hoist import Dependence, dependence
from rfc_fx.layout import Layout
from rfc_fx.lower import Cond, Host, lower_cond, lower_host, unflatten
from rfc_fx.ops import flops, value
from rfc_fx.outline import outline
from rfc_fx.predicted import capture_skipped
from rfc_fx.residuals import Found
from rfc_fx.sites import watched
from rfc_fx.specialize import AHEAD, Argument, Program, prefix_nodes
from rfc_fx.verify import verify_guarded

log = logging.getLogger("rfc_fx")

Dispatch = Literal["host", "cond"]
Decision = Literal["batch", "per_sample"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is transformed."""

    method: CachingMethod
    granularity: Choice
    dispatch: Dispatch
    decision: Decision = "batch"
    """Who decides: the batch by its mean, or each sample for itself (`rfc_fx.per_sample`)."""
    regional: bool = False
    """Repeated blocks are compiled once (`rfc_fx.repeat`)."""
    hoist: bool = False
    """What needs no latent is computed ahead of the steps (`rfc_fx.hoist`)."""
    speculate: bool | None = None
    """ESTIMATE runs while the decision travels to the host; None: on CUDA devices, where the state is small."""
    state_budget: int | None = None
    """Bytes that the state of one context may take."""


class SlotRow(NamedTuple):
    """One state tensor of the plan."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a transformed model will hold and run for one call signature, known before the first run."""

    sites: list[str]
    slots: list[SlotRow]
    state_bytes: int
    """Bytes of state of one context."""
    full_flops: int
    estimate_flops: int
    """Floating-point operations of a FULL and of an ESTIMATE step, PREFIX (and TIMESTEP where it is a program) counted in both."""
    invariant_flops: int = 0
    """Of INVARIANT, once per generation."""
    invariant_bytes: int = 0
    """Bytes of what INVARIANT computed, kept for the generation, in one context."""
    timestep_flops: int = 0
    """Of TIMESTEP, per step; after `prepare` one batched product for all steps."""
    timestep_bytes: int = 0
    """Bytes of what TIMESTEP computes for one step; after `prepare` a table holds as much for every step."""
    phase_flops: Mapping[str, int] = field(default_factory=dict)
    """Of a step in each phase that the method has beside FULL and ESTIMATE, counted as these are."""
    alternatives: Alternatives = field(default_factory=dict)
    """Bytes of state of one context, had another granularity or `state_dtype` been chosen (without the bookkeeping of "cond")."""
    dependence: tuple[Dependence, ...] = ()
    """What depends on the conditioning alone, on the timestep, and on the latent."""

    @property
    def verify_flops(self) -> int:
        """Of a VERIFY step, which computes a block beside its estimate; 0 where the method has no such phase."""
        return self.phase_flops.get("VERIFY", 0)

    def share(self, phase: str) -> float:
        """FLOPs of a step in that phase as a share of a FULL step's."""
        known = {"FULL": self.full_flops, "ESTIMATE": self.estimate_flops, **self.phase_flops}
        return known[phase] / max(1, self.full_flops)

    @property
    def estimate_share(self) -> float:
        """FLOPs of an ESTIMATE step as a share of a FULL step's."""
        return self.share("ESTIMATE")


class Runner(Protocol):
    """A program as the host runs it."""

    @property
    def phase(self) -> str: ...
    @property
    def arguments(self) -> tuple[Argument, ...]: ...
    @property
    def results(self) -> tuple[str, ...]: ...
    @property
    def run(self) -> Callable[..., Any]:
        """Takes the arguments' tensors in order, returns the results in order."""
        ...

    @property
    def batched(self) -> Callable[..., Any] | None:
        """The same for `torch.vmap`, which cannot run everything."""
        ...


class Programs(Protocol):
    """What the host needs to take steps for one call signature."""

    @property
    def programs(self) -> Mapping[str, Runner]:
        """By phase."""
        ...

    @property
    def layout(self) -> Layout: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def timestep(self) -> str | None:
        """Placeholder that carries the timestep, None when the model has no such argument."""
        ...

    @property
    def placeholders(self) -> Sequence[Argument]:
        """The tensor arguments by the names that programs have for them."""
        ...

    @property
    def latent(self) -> str:
        """Name of the argument that the sampler moves."""
        ...

    @property
    def counts_itself(self) -> bool:
        """Whether step numbers and decisions are state of the programs (`dispatch="cond"`)."""
        ...

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        """The tensor arguments in the order of the placeholders."""
        ...

    def unflatten(self, outputs: Sequence[Tensor]) -> Any:
        """What the model's forward returns."""
        ...


@dataclass(frozen=True)
class Compiled:
    """Everything made for one signature: the graphs, the programs and the plan."""

    captured: Captured
    found: Found
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
    def counts_itself(self) -> bool:
        """Whether step numbers and decisions are state of the graph."""
        return isinstance(self.lowered, Cond)

    @cached_property
    def whole_plan(self) -> Plan:
        """The plan with what other granularities and types would take, and what depends on what."""
        depends = dependence(self.guarded, self.timestep, prefix_nodes(self.guarded))
        return replace(self.plan, alternatives=alternatives(self.captured, self.guarded.method), dependence=tuple(depends))

    @cached_property
    def placeholders(self) -> list[Argument]:
        """The tensor arguments by the names that programs have for them."""
        return [("input", name) for name in self.captured.names]

    def unflatten(self, outputs: Sequence[Tensor]) -> Any:
        """What the model's forward returns."""
        if self._is_tuple:
            return tuple(outputs)
        return unflatten(outputs, self.captured.outputs)

    @cached_property
    def _is_tuple(self) -> bool:
        spec = self.captured.outputs
        return spec.type is tuple and all(child.is_leaf() for child in spec.children())

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        """The tensor arguments in the order of the placeholders."""
        return [leaves[position] for position in self.captured.inputs]


def build(
    model: nn.Module, arguments: Mapping[str, Any], options: Options, timestep: str | None, predictor: Predictor | None = None
) -> Compiled:
    """model -> graph -> sites -> one call per site -> guarded graph -> programs. `predictor` stands in for the blocks."""
    start = time.perf_counter()
    when = arguments.get(timestep) if timestep is not None else None
    if when is not None and not isinstance(when, Tensor):
        raise SignatureError(
            f"{type(model).__name__}: {timestep} must be a tensor, got {type(when).__name__}; "
            "a plain number would be a constant of the graph, and every step would be captured anew"
        )
    captured = replace(capture(model, arguments), predictor=predictor)
    found = sites_within(captured, options.granularity, options.method, options.state_budget)
    outlined = outline(captured, found.sites)
    skipped = None if predictor is None else capture_skipped(captured, predictor, arguments, found.sites)
    guarded = guard(outlined, watched(found.sites, captured), options.method, skipped)
    verify_guarded(guarded)
    named = next((place for place, name in captured.names.items() if name == timestep), None)
    lowered = (
        lower_host(guarded, named, regional=options.regional, hoists=options.hoist)
        if options.dispatch == "host"
        else lower_cond(guarded, named)
    )
    slots = lowered.layout.slots
    device = guarded.watched.I.meta["val"].device
    compiled = Compiled(
        captured, found, guarded, lowered, named, _plan(guarded, lowered.programs, slots), device, time.perf_counter() - start
    )
    log.info(
        "%s: %d sites, %d rejected, %.1f MiB of state per context, ESTIMATE %.1f %% of FULL's FLOPs, captured in %.1f s",
        type(model).__name__,
        len(guarded.sites),
        len(found.rejected),
        compiled.plan.state_bytes / 2**20,
        100 * compiled.plan.estimate_share,
        compiled.seconds,
    )
    return compiled


def _plan(guarded: Guarded, programs: dict[str, Program], slots: Mapping[str, SlotSpec]) -> Plan:
    rows = [SlotRow(name, spec.shape, spec.dtype, prod(spec.shape) * spec.dtype.itemsize) for name, spec in slots.items()]
    cost = {phase: flops(program.graph.nodes) for phase, program in programs.items()}
    shared = cost.get("PREFIX", 0) + cost.get("TIMESTEP", 0)
    held = {phase: sum(value(node).nbytes for node in programs[phase].returned()) for phase in AHEAD if phase in programs}
    return Plan(
        [site.name for site in guarded.sites],
        rows,
        sum(row.bytes for row in rows),
        cost["FULL"] + shared,
        cost["ESTIMATE"] + shared,
        invariant_flops=cost.get("INVARIANT", 0),
        invariant_bytes=held.get("INVARIANT", 0),
        timestep_flops=cost.get("TIMESTEP", 0),
        phase_flops={phase: flops + shared for phase, flops in cost.items() if phase not in (*AHEAD, "PREFIX", "FULL", "ESTIMATE")},
        timestep_bytes=held.get("TIMESTEP", 0),
    )


def signature(arguments: Mapping[str, Any], model: nn.Module) -> tuple[tuple[Any, ...], list[Any]]:
    """Return what a set of programs is fixed to (names, shapes, dtypes, devices, plain values) and the flat arguments.

    Raises SignatureError for gradients: cached steps write their state in place and cannot be differentiated.
    """
    leaves, spec = pytree.tree_flatten(dict(arguments))
    parts: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.requires_grad:
                raise SignatureError(
                    f"{type(model).__name__}: an argument of shape {tuple(leaf.shape)} requires grad; "
                    "feature caching is for sampling: call under torch.no_grad() with detached tensors"
                )
            parts.append((tuple(leaf.shape), leaf.dtype, leaf.device))
        else:
            parts.append(leaf if isinstance(leaf, int | float | str | bool | type(None)) else repr(leaf))
    return (spec, *parts), leaves
