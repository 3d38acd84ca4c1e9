"""Hoisting: whether a step's hoisted values are known, and the timesteps they are prepared for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rfc_fx.runtime.calls import timestep_ends
from rfc_fx.runtime.context import Context
from rfc_fx.runtime.hoisted import TimestepTable, fill_table
from rfc_fx.runtime.sampler import LEADING, Following


class Hoisting:
    """What is known of the timesteps that a model will be called with."""

    def __init__(self) -> None:
        self.timesteps: Tensor | None = None
        """Timesteps of the coming generations, as they were prepared."""
        self.following: Following | None = None
        """Where every generation's timesteps are read, instead."""

    def known(
        self,
        phase: str,
        context: Context,
        inputs: Sequence[Tensor],
        carries: Mapping[str, Tensor],
        ends: tuple[float, float] | None,
        number: int,
    ) -> tuple[dict[str, Tensor] | None, float | None]:
        """The hoisted values of step `number`, None where the phase has to run; and the timestep they are for, where no host saw it.

        `ends`: smallest and largest timestep of the batch, where the host has looked.
        """
        hoisted = context.hoisted
        if phase == "INVARIANT":
            return (hoisted.invariants if hoisted.hold(context.conditioning(inputs)) else None), None
        if "INVARIANT" not in context.hoisted_phases:
            hoisted.hold(context.conditioning(inputs))
        index = context.timestep_index
        if index is None:
            return None, None
        timesteps = self.timesteps if self.following is None else hoisted.timesteps
        table = hoisted.table_for(timesteps, lambda prepared: _table(context, inputs, carries, index, prepared))
        if table is None:
            return None, None
        if ends is None and _on_host(inputs[index]):
            ends = timestep_ends(inputs[index])
        if ends is not None:
            row = table.row_of.get(ends[1]) if ends[0] == ends[1] else None
            return (None if row is None else table.rows[row]), None
        if number >= len(table.order):
            return None, None
        return table.rows[number], table.order[number]  # the timestep comes to the host with the decision, which checks this

    def look_ahead(self, context: Context, timestep: float | None, inputs: Sequence[Tensor]) -> None:
        """After the leading steps of a generation, note the timesteps that the others will have."""
        if self.following is None or timestep is None or "TIMESTEP" not in context.hoisted_phases or context.book.step != LEADING:
            return
        assert context.timestep_index is not None
        context.hoisted.timesteps = self.following.timesteps(timestep, LEADING - 1, inputs[context.timestep_index].dtype)


def _table(context: Context, inputs: Sequence[Tensor], carries: Mapping[str, Tensor], index: int, timesteps: Tensor) -> TimestepTable:
    program = context.compiled.programs["TIMESTEP"]
    arguments = (context.bound.get("TIMESTEP") or context.bind("TIMESTEP", {})).arguments(inputs, carries)
    return fill_table(program, arguments, program.arguments.index(context.compiled.placeholders[index]), timesteps)


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
