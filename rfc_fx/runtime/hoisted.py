"""Hoisted values: the results of INVARIANT and TIMESTEP of one context, and whether they still hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rfc.conditioning import Seen, all_equal
from rfc_fx.ir.phase import HOISTED_PHASES
from rfc_fx.ir.program import RunnableProgram

log = logging.getLogger("rfc_fx")


@dataclass(frozen=True)
class TimestepTable:
    """Results of TIMESTEP for every prepared step."""

    timesteps: Tensor
    """What was prepared, as it was given."""
    order: list[float]
    """The timesteps as they come."""
    rows: list[dict[str, Tensor]]
    """The results of each, by carry."""

    @cached_property
    def row_of(self) -> dict[float, int]:
        """The first row of each timestep."""
        return {value: row for row, value in reversed(list(enumerate(self.order)))}


@dataclass
class HoistedValues:
    """Results of INVARIANT and TIMESTEP of one context.

    They hold for one generation, as long as the conditioning is the same, by object and version or else by value. Weights are
    taken to be the same within a generation.
    """

    invariants: dict[str, Tensor] = field(default_factory=dict)
    """What INVARIANT computed, at fixed addresses, by carry."""
    table: TimestepTable | None = None
    timesteps: Tensor | None = None
    """Timesteps of this generation, read from a scheduler after its leading steps."""
    _seen: dict[str, Seen] | None = None
    """The conditioning they were computed from, by placeholder; None where they do not hold."""
    _in_order: bool = True
    """Whether the steps have come in the order of the table so far."""

    def begin(self) -> None:
        """A new generation: nothing holds."""
        self._seen, self.timesteps = None, None

    def distrust(self) -> None:
        """Use the table no more: steps came in another order."""
        self._in_order = False

    def hold(self, conditioning: Mapping[str, Tensor]) -> bool:
        """Whether the results are those of this conditioning; if not, note it and forget them."""
        if self._seen is not None and all_equal(self._seen, conditioning):
            return True
        self._seen = {name: Seen.now(tensor) for name, tensor in conditioning.items()}
        self._in_order, self.table = True, None
        return False

    def keep(self, names: Sequence[str], results: Sequence[Tensor]) -> dict[str, Tensor]:
        """Copy INVARIANT's results to their fixed addresses."""
        with torch.inference_mode(False), torch.no_grad():
            for name, result in zip(names, results, strict=True):
                if name not in self.invariants:
                    self.invariants[name] = torch.empty_like(result)
                    torch._dynamo.mark_static_address(self.invariants[name])
                self.invariants[name].copy_(result)
        return self.invariants

    def table_for(self, timesteps: Tensor | None, fill: Callable[[Tensor], TimestepTable]) -> TimestepTable | None:
        """The table of the prepared timesteps; None where there are none, or where steps came in another order."""
        if timesteps is None or not self._in_order:
            return None
        if self.table is None or self.table.timesteps is not timesteps:
            self.table = fill(timesteps)
        return self.table


def conditioning_inputs(programs: Mapping[str, RunnableProgram], timestep: str | None) -> tuple[str, ...]:
    """The placeholders that INVARIANT and TIMESTEP read, without the timestep."""
    arguments = (key for phase in HOISTED_PHASES if phase in programs for key in programs[phase].arguments)
    return tuple(dict.fromkeys(name for kind, name in arguments if kind == "input" and name != timestep))


def carry_names(program: RunnableProgram) -> list[str]:
    """What a program's results are called by those that read them."""
    return [name.removeprefix("carry:") for name in program.results]


def fill_table(program: RunnableProgram, arguments: Sequence[Tensor], index: int, timesteps: Tensor) -> TimestepTable:
    """Run TIMESTEP for all steps as one batched computation. `index`: where the timestep stands among its arguments."""
    now = arguments[index]
    order: list[float] = timesteps.to(now.dtype).tolist()  # before they go to the device: they come from the host
    steps = timesteps.to(now)

    def run(timestep: Tensor, of: Callable[..., Any] = program.run) -> tuple[Tensor, ...]:
        return tuple(of(*arguments[:index], timestep, *arguments[index + 1 :]))

    batch = steps.reshape(-1, *(1,) * now.dim()).expand(-1, *now.shape)
    results = None if program.batched is None else _batched(partial(run, of=program.batched), batch)
    if results is None:
        results = tuple(torch.stack(parts) for parts in zip(*map(run, batch), strict=True))
    names = carry_names(program)
    columns = [result.contiguous().unbind() for result in results]
    return TimestepTable(timesteps, order, [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])


def _batched(run: Callable[[Tensor], tuple[Tensor, ...]], batch: Tensor) -> tuple[Tensor, ...] | None:
    """One computation for all; None where that cannot be."""
    try:
        return torch.vmap(run)(batch)
    except RuntimeError as error:  # an operation without a batching rule
        log.info("TIMESTEP cannot be batched (%s); computed step by step", str(error).splitlines()[0])
        return None
