"""Lower for host dispatch: one program per phase, decided on the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rfc.phase import ESTIMATE, FULL
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.phase import INVARIANT, TIMESTEP
from rfc_fx.ir.program import Program
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.hoist import Hoisted, hoist
from rfc_fx.passes.prefix import carried, hoisted_program, prefix_nodes, with_prefix
from rfc_fx.passes.share_repeats import share_repeats
from rfc_fx.passes.specialize import specialize
from rfc_fx.passes.verify import verify_programs
from rfc_fx.sites.state import SCHEDULE


@dataclass(frozen=True)
class Host:
    """PREFIX (where data decides), FULL and ESTIMATE; FULL writes the state in place."""

    programs: dict[str, Program]
    layout: Layout


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
    phases = dict.fromkeys((FULL.name, ESTIMATE.name, *guarded.method.schedule.branches))
    steps = [specialize(guarded, phase, hoisted=outside, writes=writes, layout=layout) for phase in phases]
    programs = with_prefix(guarded, steps, timestep, outside)
    if hoisted is not None:
        programs = _hoisted_programs(guarded, hoisted, programs) | programs
    verify_programs(guarded, programs)
    if regional:
        captured = guarded.outlined.captured
        programs = {phase: replace(program, regional=share_repeats(program, captured)) for phase, program in programs.items()}
    return Host(programs, layout)


def _hoisted_programs(guarded: Guarded, hoisted: Hoisted, programs: dict[str, Program]) -> dict[str, Program]:
    """INVARIANT and TIMESTEP, as far as a program of the steps reads from them."""
    made: dict[str, Program] = {}
    read = carried(programs.values())
    if nodes := [node for node in hoisted.timestep_results if node.name in read]:
        made[TIMESTEP] = hoisted_program(guarded, TIMESTEP, nodes, set(hoisted.invariant))
        read |= carried(made.values())
    if nodes := [node for node in hoisted.invariant_results if node.name in read]:
        made = {INVARIANT: hoisted_program(guarded, INVARIANT, nodes)} | made
    return made
