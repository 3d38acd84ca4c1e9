"""Lower: the guarded graph becomes programs that the host chooses between, or one step with one torch.cond."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from rfc.schedule import Numbers, clock_at
from rfc.state import SlotSpec
from rfc_fx.errors import RFCError
from rfc_fx.guard import SCHEDULE, Guarded
from rfc_fx.hoist import Hoisted, hoist
from rfc_fx.layout import Layout
from rfc_fx.ops import base_of
from rfc_fx.repeat import share_repeats
from rfc_fx.specialize import Argument, Program, ahead, prefix, prefix_nodes, specialize
from rfc_fx.verify import verify_programs

LOG_STEPS = 4096
"""Steps of one generation of which the cond lowering remembers phase and error (later ones overwrite the last)."""


@dataclass(frozen=True)
class Host:
    """PREFIX (where data decides), FULL and ESTIMATE; FULL writes the state in place."""

    programs: dict[str, Program]
    layout: Layout


@dataclass(frozen=True)
class Cond:
    """One step for both phases: decision and state in the graph, one torch.cond around the net."""

    programs: dict[str, Program]
    layout: Layout
    step: Callable[[Sequence[Tensor], dict[str, Tensor], Tensor, Tensor, Numbers], tuple[Tensor, ...]]
    """(inputs, state, progress, log, numbers) -> flat outputs; writes state, progress and log."""


def lower_host(
    guarded: Guarded,
    timestep: str | None,
    *,
    regional: bool = False,
    hoists: bool = False,
    pools: bool = True,
    writes: Literal["in_place", "returned"] = "in_place",
) -> Host:
    """Make the programs for one host decision per step.

    Where an estimated step is one pass over the state, slots that look alike lie in one pool. `regional`: repeated blocks are calls of
    one region. `hoists`: INVARIANT and TIMESTEP do ahead what needs no latent. Without `pools` every slot has memory of its own;
    `writes`: whether FULL writes the state, or returns it (`specialize`).
    """
    hoisted = hoist(guarded, timestep, prefix_nodes(guarded)) if hoists else None
    outside = set() if hoisted is None else hoisted.nodes
    one_pass = pools and not regional and not guarded.method.estimator.reads_all_inputs and not guarded.tokens
    alone = {slot for slot in guarded.slots if slot.startswith(f"{SCHEDULE}.")}
    layout = Layout.pooled(guarded.slots, alone) if one_pass else Layout(guarded.slots)
    phases = dict.fromkeys((*("FULL", "ESTIMATE"), *guarded.method.schedule.phases))
    steps = [specialize(guarded, phase, hoisted=outside, writes=writes, layout=layout) for phase in phases]
    programs = _with_prefix(guarded, steps, timestep, outside)
    if hoisted is not None:
        programs = _ahead(guarded, hoisted, programs) | programs
    verify_programs(guarded, programs)
    if regional:
        captured = guarded.outlined.captured
        programs = {phase: replace(program, regional=share_repeats(program, captured)) for phase, program in programs.items()}
    return Host(programs, layout)


def _carried(programs: Iterable[Program]) -> dict[str, None]:
    return dict.fromkeys(name for program in programs for kind, name in program.arguments if kind == "carry")


def _ahead(guarded: Guarded, hoisted: Hoisted, programs: dict[str, Program]) -> dict[str, Program]:
    """INVARIANT and TIMESTEP, as far as a program of the steps reads from them."""
    made: dict[str, Program] = {}
    read = _carried(programs.values())
    if nodes := [node for node in hoisted.timestep_results if node.name in read]:
        made["TIMESTEP"] = ahead(guarded, "TIMESTEP", nodes, set(hoisted.invariant))
        read |= _carried(made.values())
    if nodes := [node for node in hoisted.invariant_results if node.name in read]:
        made = {"INVARIANT": ahead(guarded, "INVARIANT", nodes)} | made
    return made


def _with_prefix(
    guarded: Guarded, steps: Sequence[Program], timestep: str | None, hoisted: AbstractSet[fx.Node] = frozenset()
) -> dict[str, Program]:
    outside = {node.name for node in hoisted}
    carries = [name for name in _carried(steps) if name not in outside]
    first = prefix(guarded, carries, timestep, hoisted)
    return ({"PREFIX": first} if first is not None else {}) | {program.phase: program for program in steps}


def progress_slots() -> dict[str, SlotSpec]:
    """Bookkeeping of the cond lowering: [step, since, gap, anchors, total, timestep, restart], a row [full, eps, total] per step."""
    return {"progress": SlotSpec((7,), torch.float32), "log": SlotSpec((LOG_STEPS, 3), torch.float32)}


RESTART = 6
"""Where in `progress` a reset is noted: the next step begins a new generation."""


def lower_cond(guarded: Guarded, timestep: str | None, finish: Callable[[Program], Program] = lambda program: program) -> Cond:
    """Merge all guards of a step, which share one predicate, into one torch.cond; decide in the graph. `finish`: of each program.

    Raises RFCError for a schedule with more than the two phases of a torch.cond.
    """
    if guarded.method.schedule.phases != ("FULL", "ESTIMATE"):
        phases = ", ".join(guarded.method.schedule.phases)
        raise RFCError(f"{type(guarded.method.schedule).__name__} has the phases {phases}, a torch.cond has two; use dispatch='host'")
    programs = _with_prefix(guarded, [specialize(guarded, phase, writes="returned") for phase in ("FULL", "ESTIMATE")], None)
    verify_programs(guarded, programs)
    programs = {phase: finish(program) for phase, program in programs.items()}
    full, estimate = programs["FULL"], programs["ESTIMATE"]
    schedule = guarded.method.schedule
    decide = type(schedule).full
    first = programs.get("PREFIX")
    captured = guarded.outlined.captured
    places = list(captured.names)
    when = places.index(timestep) if timestep is not None else None
    slots = list(guarded.slots)
    outputs = sum(name.startswith("output:") for name in full.results)
    aliases = {program.phase: _aliases(program) for program in (full, estimate)}

    def arguments(program: Program, values: dict[Argument, Tensor]) -> list[Tensor]:
        return [values[key] for key in program.arguments]

    def step(inputs: Sequence[Tensor], state: dict[str, Tensor], progress: Tensor, log: Tensor, numbers: Numbers) -> tuple[Tensor, ...]:
        values: dict[Argument, Tensor] = {("input", name): inputs[i] for i, name in enumerate(places)}
        values |= {("state", slot): state[slot] for slot in slots}
        now = progress[5] if when is None else inputs[when].max().to(torch.float32)
        begins = (now > progress[5]) | (progress[RESTART] > 0) | (progress[0] == 0)  # noise grew, or a reset
        held = torch.where(begins, torch.zeros_like(progress[:5]), progress[:5])
        number, since, gap, anchors, total = held.unbind()
        k = since + 1
        values["clock", "clock"] = torch.stack(list(clock_at(schedule, numbers, number, k, gap, anchors)))
        known = anchors > 0
        eps = torch.zeros_like(total)
        if first is not None:
            shared = first.module(*arguments(first, values))
            eps = torch.where(known, shared[0][0], eps)
            for name, tensor in zip(first.results[1:], shared[1:], strict=True):
                # contiguous: Inductor may lay an operand of torch.cond out otherwise than it told the branches
                values["carry", name.removeprefix("carry:")] = tensor.contiguous()
        before, total = total, total + eps if schedule.accumulates else torch.where(known, eps, total)
        weighed = before if schedule.is_lagged else total
        is_full = decide(numbers, number, k, weighed)

        def compute() -> tuple[Tensor, ...]:
            results = full.module(*arguments(full, values))
            return tuple(r.contiguous().clone() if a else r.contiguous() for r, a in zip(results, aliases[full.phase], strict=True))

        def skip() -> tuple[Tensor, ...]:
            results = estimate.module(*arguments(estimate, values))
            outcome = [r.contiguous().clone() if a else r.contiguous() for r, a in zip(results, aliases[estimate.phase], strict=True)]
            new = dict(zip(estimate.results[outputs:], outcome[outputs:], strict=True))
            return (*outcome[:outputs], *(new[s] if (s := f"state:{slot}") in new else state[slot].clone() for slot in slots))

        if torch.compiler.is_compiling():
            results = torch.cond(is_full, compute, skip)
            for slot, new in zip(slots, results[outputs:], strict=True):
                state[slot].copy_(new)
        else:  # uncompiled, torch.cond would compile its branches: branch in Python
            program = full if bool(is_full) else estimate
            results = program.module(*arguments(program, values))
            for name, new in zip(program.results[outputs:], results[outputs:], strict=True):
                state[name.removeprefix("state:")].copy_(new)
        ran = is_full.to(torch.float32)
        row = torch.stack([ran, torch.where(known, eps, torch.full_like(eps, float("nan"))), weighed]).reshape(1, 3)
        log.index_copy_(0, number.clamp(max=LOG_STEPS - 1).long().reshape(1), row)
        gap = torch.where(is_full, torch.where(known, k, torch.zeros_like(k)), gap)
        zero = torch.zeros_like(k)
        after = [number + 1, torch.where(is_full, zero, k), gap, anchors + ran, torch.where(is_full, zero, total), now, zero]
        progress.copy_(torch.stack(after))
        return tuple(results[:outputs])

    step.__code__ = step.__code__.replace()  # its own code object: torch.compile counts recompiles per code object
    return Cond(programs, Layout(guarded.slots | progress_slots()), step)


def _aliases(program: Program) -> list[bool]:
    """Which results are arguments, or were returned already: these a branch has to copy, and only these.

    Where all are copied, Inductor drops the copies of one tensor one by one, and hands that tensor out twice.
    """
    bases = [base_of(node) for node in program.returned()]
    return [base.op != "call_function" or base in bases[:i] for i, base in enumerate(bases)]


def unflatten(outputs: Sequence[Tensor], spec: pytree.TreeSpec) -> object:
    """Rebuild what the model's forward returns."""
    return pytree.tree_unflatten(list(outputs), spec)
