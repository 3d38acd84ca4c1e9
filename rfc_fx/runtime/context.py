"""Context: the state of one name and one call signature, the generation it is in, and a step on its way through the programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rfc.bookkeeping import Direction, Generation
from rfc.schedules.base import Schedule
from rfc_fx.ir.program import Argument, ProgramSet, RunnableProgram
from rfc_fx.ir.progress import RESTART
from rfc_fx.runtime.hoisted import HoistedValues
from rfc_fx.runtime.program_cache import ends
from rfc_fx.runtime.readback import Readback


@dataclass
class Context:
    """The state of one name and one signature, and the generation it is in."""

    compiled: ProgramSet
    state: dict[str, Tensor]
    pools: dict[str, Tensor]
    clock: Tensor
    generation: Generation = field(default_factory=Generation)
    fresh: bool = True
    """The next call begins a new generation."""
    ahead: HoistedValues = field(default_factory=HoistedValues)
    mail: Readback = field(default_factory=Readback)
    """The decision's numbers on their way to the host."""
    timestep_unchecked: bool = False
    """The host has not seen the timestep that they bring."""
    expected_timestep: float | None = None
    """What it took that timestep for."""

    @cached_property
    def own(self) -> dict[Argument, Tensor]:
        """What every step of this context reads: its state."""
        pools: dict[Argument, Tensor] = {("pool", name): tensor for name, tensor in self.pools.items()}
        return pools | {("state", slot): tensor for slot, tensor in self.state.items()}

    def begin(self, generation: Generation | None = None) -> None:
        """Forget the last generation; what FULL wrote then is masked by the clock until it is written again."""
        self.generation = Generation() if generation is None else generation
        self.fresh = False
        self.mail.empty()
        self.ahead.stale, self.ahead.coming = True, None

    def record(self, schedule: Schedule) -> Generation:
        """What the current generation did."""
        return self.generation

    def ran(self, phase: str) -> None:
        """The program of a phase after the decision has run."""

    def end(self) -> None:
        """Let the next call begin a new generation; the record of this one stays readable."""
        self.fresh = True
        self.mail.empty()

    def is_over(self, timestep: float | None, direction: Direction) -> bool:
        """Whether a call at `timestep` would begin a new generation."""
        return self.fresh or not self.generation.continues(timestep, direction)


class CondContext(Context):
    """A context whose bookkeeping is state of the graph."""

    def record(self, schedule: Schedule) -> Generation:
        """Read the record back from the log."""
        steps = int(self.state["progress"][0])
        rows = self.state["log"][:steps].tolist()
        known = [row[1] == row[1] for row in rows]
        return Generation(
            phases=["FULL" if row[0] else "ESTIMATE" for row in rows],
            eps=[row[1] if k else None for row, k in zip(rows, known, strict=True)],
            totals=[row[2] if k else None for row, k in zip(rows, known, strict=True)],
            could_skip=schedule.can_skip(steps),
            timestep=float(self.state["progress"][5]) if steps else None,
            moved=steps > 1,
        )

    def end(self) -> None:
        self.state["progress"][RESTART] = 1.0

    def is_over(self, timestep: float | None, direction: Direction) -> bool:
        progress = self.state["progress"].tolist()
        return progress[0] == 0 or progress[RESTART] > 0 or (timestep is not None and timestep > progress[5])


@dataclass
class Step:
    """One call on its way through the programs."""

    context: Context
    values: dict[Argument, Tensor]
    call: tuple[tuple[Any, ...], dict[str, Any]]
    """The arguments of the call, for a step that has to begin anew."""
    pending: list[str]
    """Phases before the decision that are still to come."""
    program: RunnableProgram | None = None
    """The program that is due, or ran last."""
    run: Callable[..., Any] | None = None
    """What to call for it; None when the step is done."""
    given: list[Tensor] = field(default_factory=list)
    output: Any = None
    is_guessing: bool = False
    """Whether the program that is due runs before the decision is known."""
    guess: Any = None
    """What it returned."""
    timestep: float | None = None
    expected_timestep: float | None = None
    """The timestep whose prepared results are used before the host has seen it."""

    _ends: tuple[float, float] | None = None

    def ends(self) -> tuple[float, float]:
        """Smallest and largest timestep of the batch, read once."""
        if self._ends is None:
            assert self.context.compiled.timestep is not None
            self._ends = ends(self.values["input", self.context.compiled.timestep])
        return self._ends

    def turn_to(self, program: RunnableProgram) -> Step:
        """Make this program the one that is due."""
        self.program, self.run, self.given = program, program.run, [self.values[key] for key in program.arguments]
        return self

    def finish(self, results: Sequence[Tensor]) -> Step:
        """Take the model's outputs: what a CUDA graph returned lies where its next run will write, and samplers keep earlier outputs."""
        kept = [result.clone() for result in results] if self.context.clock.is_cuda else results
        assert self.program is not None
        self.context.ran(self.program.phase)
        self.output, self.run = self.context.compiled.unflatten(kept), None
        return self


def new_context(compiled: ProgramSet, kind: type[Context] | None = None) -> Context:
    """Empty state with fixed addresses."""
    state, pools = compiled.layout.allocate(compiled.device)
    with torch.inference_mode(False):
        clock = torch.zeros(3, device=compiled.device)
    for tensor in (*state.values(), *pools.values(), clock):
        torch._dynamo.mark_static_address(tensor)
    kind = kind or (CondContext if compiled.counts_itself else Context)
    return kind(compiled, state, pools, clock)


def records(contexts: Mapping[tuple[str, Any], Context], schedule: Schedule) -> dict[str, Generation]:
    """What each context's generation did, by its name; "cond (2)" is the second set of programs that ran as "cond"."""
    found: dict[str, Generation] = {}
    times = Counter[str]()
    for (name, _), context in contexts.items():
        times[name] += 1
        found[name if times[name] == 1 else f"{name} ({times[name]})"] = context.record(schedule)
    return found
