"""Ahead: what was computed before the steps of a generation, and whether it still holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rfc.conditioning import Seen
from rfc_fx.ir.phase import HOISTED_PHASES
from rfc_fx.ir.program import Argument

if TYPE_CHECKING:
    from rfc_fx.ir.program import RunnableProgram
    from rfc_fx.runtime.context import Step
import logging

log = logging.getLogger("rfc_fx")


@dataclass
class HoistedValues:
    """Results of INVARIANT and TIMESTEP of one context.

    They hold for one generation, as long as the conditioning is the same, by object and version or else by value. Weights are
    taken to be the same within a generation.
    """

    stale: bool = True
    seen: dict[str, Seen] = field(default_factory=dict)
    """The conditioning they were made from, by placeholder."""
    read: set[str] | None = None
    """The placeholders of that conditioning; None before it was needed."""
    held: dict[str, Tensor] = field(default_factory=dict)
    """What INVARIANT computed, at fixed addresses, by carry."""
    table: list[dict[Argument, Tensor]] = field(default_factory=list)
    """What TIMESTEP computed for every prepared step, by carry."""
    rows: dict[float, int] = field(default_factory=dict)
    """Prepared timestep -> its row of the table."""
    order: list[float] = field(default_factory=list)
    """The prepared timesteps as they come."""
    trusted: bool = True
    """Whether the steps have come in that order so far."""
    made_for: Tensor | None = None
    coming: Tensor | None = None
    """Timesteps of the generation, read from a scheduler after its leading steps."""

    def holds(self, programs: Mapping[str, RunnableProgram], timestep: str | None, values: Mapping[Argument, Tensor]) -> bool:
        """Whether the results are those of the present conditioning; if not, note it and forget them."""
        if self.read is None:
            arguments = (key for phase in HOISTED_PHASES if phase in programs for key in programs[phase].arguments)
            self.read = {name for kind, name in arguments if kind == "input" and name != timestep}
        names = self.read
        if not self.stale and all(name in self.seen and self.seen[name].equals(values["input", name]) for name in names):
            return True
        self.seen = {name: Seen.now(values["input", name]) for name in names}
        self.stale, self.trusted, self.made_for = False, True, None
        return False

    def keep(self, names: Sequence[str], results: Sequence[Tensor]) -> None:
        """Copy INVARIANT's results to their fixed places."""
        with torch.inference_mode(False), torch.no_grad():
            for name, result in zip(names, results, strict=True):
                if name not in self.held:
                    self.held[name] = torch.empty_like(result)
                    torch._dynamo.mark_static_address(self.held[name])
                self.held[name].copy_(result)

    def fill(self, program: RunnableProgram, timestep: str, values: Mapping[Argument, Tensor], timesteps: Tensor) -> None:
        """Run TIMESTEP for all steps as one batched computation."""
        given = values["input", timestep]
        steps = timesteps.to(given)
        fixed = [None if key == ("input", timestep) else values[key] for key in program.arguments]

        def one(t: Tensor, run: Callable[..., Any] = program.run) -> tuple[Tensor, ...]:
            return tuple(run(*[t if value is None else value for value in fixed]))

        batched = steps.reshape(-1, *(1,) * given.dim()).expand(-1, *given.shape)
        results = None if program.batched is None else _batched(partial(one, run=program.batched), batched)
        if results is None:
            results = tuple(torch.stack(parts) for parts in zip(*map(one, batched), strict=True))
        names = [name.removeprefix("carry:") for name in program.results]
        columns = [result.contiguous().unbind() for result in results]
        self.table = [{("carry", name): tensor for name, tensor in zip(names, row, strict=True)} for row in zip(*columns, strict=True)]
        self.order = steps.tolist()
        self.rows = {value: i for i, value in reversed(list(enumerate(self.order)))}
        self.made_for = timesteps


def _batched(one: Callable[[Tensor], tuple[Tensor, ...]], batch: Tensor) -> tuple[Tensor, ...] | None:
    """One computation for all; None where that cannot be."""
    try:
        return torch.vmap(one)(batch)
    except RuntimeError as error:  # an operation without a batching rule
        log.info("TIMESTEP cannot be batched (%s); computed step by step", str(error).splitlines()[0])
        return None


def known(step: Step, phase: str, timesteps: Tensor | None) -> bool:
    """Whether what INVARIANT or TIMESTEP would compute is known; if so, it is put among the step's values."""
    ahead, compiled = step.context.ahead, step.context.compiled
    if phase == "INVARIANT":
        holds = ahead.holds(compiled.programs, compiled.timestep, step.values)
        if holds:
            step.values |= {("carry", name): tensor for name, tensor in ahead.held.items()}
        return holds
    if "INVARIANT" not in compiled.programs:
        ahead.holds(compiled.programs, compiled.timestep, step.values)
    row = _row(step, timesteps)
    if row is None:
        return False
    step.values |= ahead.table[row]
    return True


def _row(step: Step, timesteps: Tensor | None) -> int | None:
    """Row of the prepared timesteps for this step; None where they are unknown, or this one is none of them."""
    ahead, compiled = step.context.ahead, step.context.compiled
    if timesteps is None or compiled.timestep is None or not ahead.trusted:
        return None
    if ahead.made_for is not timesteps:
        ahead.fill(compiled.programs["TIMESTEP"], compiled.timestep, step.values, timesteps)
    given = step.values["input", compiled.timestep]
    if _on_host(given) or "PREFIX" not in compiled.programs:
        low, high = step.ends()
        return ahead.rows.get(high) if low == high else None
    place = step.context.generation.step  # the timestep comes to the host with the decision, which checks this
    if place >= len(ahead.order):
        return None
    step.expected_timestep = ahead.order[place]
    return place


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
