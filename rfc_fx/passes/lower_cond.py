"""Lower for cond dispatch: one graph with one torch.cond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rfc.counts import advance, observe
from rfc.phase import ESTIMATE, FULL
from rfc.schedules.base import Numbers, clock_at
from rfc_fx.errors import RFCError
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.ops import base_of
from rfc_fx.ir.phase import PREFIX
from rfc_fx.ir.program import CLOCK, Argument, CondStep, Program
from rfc_fx.ir.progress import LOG_STEPS, Progress, progress_slots
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.prefix import with_prefix
from rfc_fx.passes.specialize import specialize
from rfc_fx.passes.verify import verify_programs


@dataclass(frozen=True)
class Cond:
    """One step for both phases: decision and state in the graph, one torch.cond around the net."""

    programs: dict[str, Program]
    layout: Layout
    step: CondStep


def lower_cond(guarded: Guarded, timestep: str | None, finish: Callable[[Program], Program] = lambda program: program) -> Cond:
    """Merge all guards of a step, which share one predicate, into one torch.cond; decide in the graph. `finish`: of each program.

    Raises RFCError for a schedule with more than the two phases of a torch.cond.
    """
    if guarded.method.schedule.branches != (FULL.name, ESTIMATE.name):
        phases = ", ".join(guarded.method.schedule.branches)
        raise RFCError(f"{type(guarded.method.schedule).__name__} has the phases {phases}, a torch.cond has two; use dispatch='host'")
    programs = with_prefix(guarded, [specialize(guarded, phase, writes="returned") for phase in (FULL.name, ESTIMATE.name)], None)
    verify_programs(guarded, programs)
    programs = {phase: finish(program) for phase, program in programs.items()}
    full, estimate = programs[FULL.name], programs[ESTIMATE.name]
    schedule = guarded.method.schedule
    decide = type(schedule).full
    first = programs.get(PREFIX)
    captured = guarded.outlined.captured
    places = list(captured.names)
    when = places.index(timestep) if timestep is not None else None
    slots = list(guarded.slots)
    outputs = sum(name.startswith("output:") for name in full.results)
    aliases = {program.phase: _aliases(program) for program in (full, estimate)}

    def arguments(program: Program, values: dict[Argument, Tensor], shapes: dict[Argument, torch.Size]) -> list[Tensor]:
        return [values[key].view(shapes[key]) if key in shapes else values[key] for key in program.arguments]

    def step(inputs: Sequence[Tensor], state: dict[str, Tensor], progress: Tensor, log: Tensor, numbers: Numbers) -> tuple[Tensor, ...]:
        values: dict[Argument, Tensor] = {("input", name): inputs[i] for i, name in enumerate(places)}
        values |= {("state", slot): state[slot] for slot in slots}
        last = Progress.unbind(progress)
        now = last.timestep if when is None else inputs[when].max().to(torch.float32)
        begins = (now > last.timestep) | (last.restart > 0) | (last.step == 0)  # noise grew, or a reset
        held = torch.where(begins, torch.zeros_like(progress), progress)
        before = Progress.unbind(held)
        counts = before.counts
        k = counts.since + 1
        values[CLOCK] = clock_at(schedule, numbers, before.step, k, counts.gap, counts.anchors).packed()
        known = counts.anchors > 0
        eps = torch.zeros_like(k)
        shapes: dict[Argument, torch.Size] = {}
        if first is not None:
            shared = first.module(*arguments(first, values, shapes))
            eps = torch.where(known, shared[0][0], eps)
            for name, tensor in zip(first.results[1:], shared[1:], strict=True):
                key: Argument = ("carry", name.removeprefix("carry:"))
                # flat: Inductor may lay an operand of torch.cond out otherwise than it told the branches, but not one of a single dimension
                shapes[key], values[key] = tensor.shape, tensor.contiguous().flatten()
        observed = observe(counts, eps, accumulates=schedule.accumulates)
        weighed = counts.total if schedule.is_lagged else observed.total
        is_full = decide(numbers, before.step, k, weighed)

        def compute() -> tuple[Tensor, ...]:
            results = full.module(*arguments(full, values, shapes))
            return tuple(r.contiguous().clone() if a else r.contiguous() for r, a in zip(results, aliases[full.phase], strict=True))

        def skip() -> tuple[Tensor, ...]:
            results = estimate.module(*arguments(estimate, values, shapes))
            outcome = [r.contiguous().clone() if a else r.contiguous() for r, a in zip(results, aliases[estimate.phase], strict=True)]
            new = dict(zip(estimate.results[outputs:], outcome[outputs:], strict=True))
            kept = [new[f"state:{slot}"] if f"state:{slot}" in new else state[slot].clone() for slot in slots]
            return (*outcome[:outputs], *kept)

        if torch.compiler.is_compiling():
            results = torch.cond(is_full, compute, skip)
            for slot, new in zip(slots, results[outputs:], strict=True):
                state[slot].copy_(new)
        else:  # uncompiled, torch.cond would compile its branches: branch in Python
            program = full if bool(is_full) else estimate
            results = program.module(*arguments(program, values, shapes))
            for name, new in zip(program.results[outputs:], results[outputs:], strict=True):
                state[name.removeprefix("state:")].copy_(new)
        row = torch.stack([is_full.to(torch.float32), torch.where(known, eps, torch.full_like(eps, float("nan"))), weighed]).reshape(1, 3)
        log.index_copy_(0, before.step.clamp(max=LOG_STEPS - 1).long().reshape(1), row)
        after = Progress(before.step + 1, *advance(observed, is_full), timestep=now, restart=torch.zeros_like(k))
        progress.copy_(after.stack())
        return tuple(results[:outputs])

    step.__code__ = step.__code__.replace()  # its own code object: torch.compile counts recompiles per code object
    return Cond(programs, Layout(guarded.slots | progress_slots()), step)


def _aliases(program: Program) -> list[bool]:
    """Which results are arguments, or were returned already: these a branch has to copy, and only these.

    Where all are copied, Inductor drops the copies of one tensor one by one, and hands that tensor out twice.
    """
    bases = [base_of(node) for node in program.returned()]
    return [base.op != "call_function" or base in bases[:i] for i, base in enumerate(bases)]
