"""Prefix: the part of a step that all phases share and that data-driven schedules decide by, and the programs of hoisted work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor, fx

from rfc.state import Clock, SlotSpec
from rfc_fx.ir.ops import aten, base_of, closure, is_heavy, is_view, spec_of
from rfc_fx.ir.phase import PREFIX
from rfc_fx.ir.program import CLOCK_SPECS, Program
from rfc_fx.passes.builder import Builder
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.traced import all_reduced
from rfc_fx.sites.state import SCHEDULE, schedule_slots, signals


def prefix_nodes(guarded: Guarded) -> set[fx.Node]:
    """What all phases share and a data-driven schedule needs: everything the watched input is made from."""
    return {node for node in closure(signals(guarded.watched, guarded.method).values()) if node.op not in ("placeholder", "get_attr")}


LIGHT = 16
"""Elementwise operations and reductions that are cheaper to do again than to keep a tensor of the stream for."""


def rematerialized(guarded: Guarded, shared: AbstractSet[fx.Node], hoisted: AbstractSet[fx.Node]) -> set[fx.Node]:
    """PREFIX nodes that FULL and ESTIMATE recompute from values carried to them anyway, rather than keep alive.

    Typically the first site's input, made from the residual stream and the modulation: a result of PREFIX lives as long as the step does,
    so each that is carried adds to the memory of a full step.
    """
    made = shared - hoisted
    read = {site.I for site in guarded.sites} | {
        source for node in guarded.module.graph.nodes if node not in made for source in node.all_input_nodes
    }
    order = [node for node in guarded.module.graph.nodes if node in made]
    bases = {base_of(node) for node in order if node in read}
    again: set[fx.Node] = set()
    for node in reversed([node for node in order if node in bases]):
        work = _between(node, made, bases - {node})
        if not any(map(is_heavy, work)) and sum(not is_view(source) for source in work) <= LIGHT:
            bases.remove(node)
            again |= work
    return again


def _between(node: fx.Node, made: AbstractSet[fx.Node], stop: AbstractSet[fx.Node]) -> set[fx.Node]:
    """The node and what it is made from, up to `stop`, results of other programs, arguments and weights."""
    return closure([node], lambda source: source in made and source not in stop)


def prefix(guarded: Guarded, carries: Iterable[str], timestep: str | None, hoisted: AbstractSet[fx.Node] = frozenset()) -> Program | None:
    """PREFIX: the shared part, and the decision's data as one float32 tensor; None when no data decides.

    The data are [eps], and where the timestep is known [eps, largest timestep, smallest timestep].
    """
    schedule = guarded.method.schedule
    watched = signals(guarded.watched, guarded.method)
    if not watched:
        return None
    build = Builder(guarded, PREFIX, set(hoisted))
    specs = {name: spec_of(node) for name, node in watched.items()}
    slots = schedule_slots(guarded.watched, guarded.method)

    def error(*tensors: Tensor) -> Tensor:
        held, seen, clock = tensors[: len(slots)], tensors[len(slots) : -3], tensors[-3:]
        return schedule.error(dict(zip(specs, seen, strict=True)), dict(zip(slots, held, strict=True)), Clock(*clock)).reshape(1)

    inputs = [*build.state(SCHEDULE).values(), *map(build.get, watched.values()), *build.clock()]
    (decision,) = build.inline(
        ("error", schedule, tuple(slots), tuple(specs)), error, [*slots.values(), *specs.values(), *CLOCK_SPECS], inputs
    )
    decision = one_decision(build, guarded, decision)
    by_name = {node.name: node for node in guarded.module.graph.nodes}
    if timestep is not None:
        given = build.get(by_name[timestep])
        ends = [build.graph.call_function(end, (given,)) for end in (aten.max.default, aten.min.default)]
        noise = build.graph.call_function(aten.stack.default, (ends,))
        noise = build.graph.call_function(aten.to.dtype, (noise, torch.float32))
        decision = build.graph.call_function(aten.cat.default, ([decision, noise],))
    names = list(carries)
    return build.finish([decision, *(build.carried(by_name[name]) for name in names)], ["decision", *(f"carry:{n}" for n in names)])


def one_decision(build: Builder, guarded: Guarded, error: fx.Node) -> fx.Node:
    """The error of a step, (1,), joined over the ranks that decide together about batches of their own: the mean, or the largest."""
    group = guarded.outlined.captured.decided_with
    if group is None:
        return error
    is_largest = guarded.method.schedule.joins == "max"

    def joined(error: Tensor) -> Tensor:
        over = str(group.group_name)
        return all_reduced(error, over, "max") if is_largest else all_reduced(error, over) / group.size()

    return build.inline(("joined", str(group.group_name), group.size(), is_largest), joined, [SlotSpec((1,), torch.float32)], [error])[0]


def with_prefix(
    guarded: Guarded, steps: Sequence[Program], timestep: str | None, hoisted: AbstractSet[fx.Node] = frozenset()
) -> dict[str, Program]:
    """The programs of the steps behind the PREFIX that they share, where data decides."""
    outside = {node.name for node in hoisted}
    carries = [name for name in carried(steps) if name not in outside]
    first = prefix(guarded, carries, timestep, hoisted)
    return ({PREFIX: first} if first is not None else {}) | {program.phase: program for program in steps}


def carried(programs: Iterable[Program]) -> dict[str, None]:
    """The names of the values that the programs read from programs before them, in order."""
    return dict.fromkeys(name for program in programs for kind, name in program.arguments if kind == "carry")


def hoisted_program(guarded: Guarded, phase: str, nodes: Sequence[fx.Node], done: AbstractSet[fx.Node] = frozenset()) -> Program:
    """The program that computes hoisted nodes; `done`: those computed by a program before it."""
    build = Builder(guarded, phase, set(done))
    return build.finish([build.carried(node) for node in nodes], [f"carry:{node.name}" for node in nodes])
