"""Hoisting: whether a step's hoisted values are known already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rfc_fx.runtime import calls
from rfc_fx.runtime.calls import timestep_ends
from rfc_fx.runtime.context import Context
from rfc_fx.runtime.generation import Generation
from rfc_fx.runtime.hoisted import TimestepTable, fill_table


def known_values(
    generation: Generation,
    phase: str,
    context: Context,
    inputs: Sequence[Tensor],
    carries: Mapping[str, Tensor],
    ends: tuple[float, float] | None,
    number: int,
) -> tuple[dict[str, Tensor] | None, float | None]:
    """The hoisted values of step `number`, None where the phase has to run; and the timestep they are for, where no host saw it.

    `ends`: smallest and largest timestep of the batch, where they are known.
    """
    hoisted = context.hoisted
    if phase == "INVARIANT":
        return (hoisted.invariants if hoisted.hold(context.conditioning(inputs)) else None), None
    if "INVARIANT" not in context.hoisted_phases:
        hoisted.hold(context.conditioning(inputs))
    index = context.timestep_index
    if index is None:
        return None, None
    called = generation.called(context.at, inputs[index].dtype)
    table = hoisted.table_for(called, lambda timesteps: _table(context, inputs, carries, index, timesteps))
    if table is None:
        return None, None
    if ends is None and calls.on_host(inputs[index]):
        ends = timestep_ends(inputs[index])
    if ends is not None:
        row = table.row_of.get(ends[1]) if ends[0] == ends[1] else None
        return (None if row is None else table.rows[row]), None
    if number >= len(table.order) or context.at.step is not None:  # of a known sampler, with a timestep for each token
        return None, None
    return table.rows[number], table.order[number]  # the timestep comes to the host with the decision, which checks this


def _table(context: Context, inputs: Sequence[Tensor], carries: Mapping[str, Tensor], index: int, timesteps: Tensor) -> TimestepTable:
    program = context.compiled.programs["TIMESTEP"]
    arguments = (context.bound.get("TIMESTEP") or context.bind("TIMESTEP", {})).arguments(inputs, carries)
    return fill_table(program, arguments, program.arguments.index(context.compiled.placeholders[index]), timesteps)
