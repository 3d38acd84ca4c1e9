"""Context: the state of one name and one call signature, and the book of the generation it is in."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from rfc.bookkeeping import Book, ClockValues, Rule, continues
from rfc.schedules.base import Schedule
from rfc_fx.ir.phase import HOISTED_PHASES, PREFIX
from rfc_fx.ir.program import CLOCK, Argument, ProgramSet
from rfc_fx.ir.progress import is_over, mark_restart, read_book
from rfc_fx.runtime.hoisted import HoistedValues, conditioning_inputs
from rfc_fx.runtime.picking import picker
from rfc_fx.runtime.position import Position
from rfc_fx.runtime.readback import Readback


class Bound(NamedTuple):
    """A program with the arguments that stay the same from step to step."""

    run: Callable[..., Any]
    fixed: list[Any]
    """Every argument; None where a step has its own."""
    inputs: list[tuple[int, int]]
    """(index of the argument, index of the input)."""
    carries: list[tuple[int, str]]
    """(index of the argument, name of the carry)."""

    def direct(self) -> Callable[..., Any]:
        """What runs the program: its forward, without the ten frames of a module's call, unless somebody has put hooks on it."""
        run = self.run
        if not isinstance(run, fx.GraphModule) or run._forward_pre_hooks or run._forward_hooks:
            return run
        return run.forward

    def arguments(self, inputs: Sequence[Tensor], carries: Mapping[str, Tensor]) -> list[Tensor]:
        """The arguments of one step."""
        arguments = self.fixed.copy()
        for index, position in self.inputs:
            arguments[index] = inputs[position]
        for index, name in self.carries:
            arguments[index] = carries[name]
        return arguments


class Context:
    """The state of one name and one call signature, and the generation it is in."""

    def __init__(self, compiled: ProgramSet) -> None:
        self.compiled = compiled
        self.state, self.pools = compiled.layout.allocate(compiled.device)
        with torch.inference_mode(False):
            self.clock = torch.zeros(compiled.clock_size, device=compiled.device)
        for tensor in (*self.state.values(), *self.pools.values(), self.clock):
            torch._dynamo.mark_static_address(tensor)
        self.book = Book()
        self.name = ""
        """Of the pass of guidance that it is used for ("cond", "uncond"), as far as that is known; else of its lane."""
        self.schedule: Schedule | None = None
        """The schedule that the generation began with, where another has taken its place since."""
        self.has_ended = True
        """Whether the next call begins a new generation."""
        self.running = ""
        """The program that ran last."""
        self.shape: tuple[int, ...] = ()
        """Of the latent; its programs are for that one."""
        self.at = Position()
        """Of the latest call."""
        self.before: Position | None = None
        """Of the latest step that has run; None where it is another run's."""
        self.hoisted = HoistedValues()
        self.readback = Readback()
        """The decision's numbers on their way to the host."""
        programs = compiled.programs
        self.hoisted_phases = tuple(phase for phase in HOISTED_PHASES if phase in programs)
        self.prefix = programs.get(PREFIX)
        self._positions = {name: index for index, (_, name) in enumerate(compiled.placeholders)}
        self.timestep_index = None if compiled.timestep is None else self._positions[compiled.timestep]
        self.latent_index = latent_index(compiled)
        self._conditioning = conditioning_inputs(programs, compiled.timestep)
        self._conditioning_of = picker([self._positions[name] for name in self._conditioning])
        self.is_cuda = self.clock.is_cuda
        self._clock_memory = _memory_of(self.clock) if self.clock.is_cpu else None
        self.bound: dict[str, Bound] = {}
        """Programs with what this context has for them, by phase."""

    # ---- the generation ----------------------------------------------------------------------------------------------

    def begin(self, book: Book) -> None:
        """Begin a generation; what FULL wrote in the one before is masked by the clock until it is written again."""
        self.book, self.has_ended, self.schedule, self.before = book, False, None, None
        self.readback.discard()
        self.hoisted.begin()

    def end(self) -> None:
        """Let the next call begin a new generation; the record of this one stays readable."""
        self.has_ended = True
        self.readback.discard()

    def complete(self) -> None:
        """The calls so far are a whole generation: what comes at another timestep is no second step of it (`rfc.bookkeeping.arrive`)."""
        self.book = self.book._replace(has_moved=True)

    def clear(self) -> None:
        """Forget the generation: it has another owner from here on."""
        self.end()
        self.book = Book()

    def record(self) -> Book:
        """What the current generation did."""
        return self.book

    def is_over(self, timestep: float | None, sign: int) -> bool:
        """Whether a call at `timestep` would begin a new generation."""
        return self.has_ended or not continues(self.book, timestep, sign)

    # ---- programs and their arguments --------------------------------------------------------------------------------

    def set_clock(self, values: ClockValues) -> None:
        """Write the clock of the coming step."""
        if self._clock_memory is None:
            self.clock.copy_(_pinned(values), non_blocking=True)
        else:
            for index, value in enumerate(values):
                self._clock_memory[index] = value

    def bind(self, phase: str, numbers: Mapping[str, Tensor]) -> Bound:
        """Bind the program of a phase to what this context has for it; `numbers` are the schedule's."""
        program = self.compiled.programs[phase]
        held = self.memory() | {CLOCK: self.clock} | _named("number", numbers)
        fixed: list[Any] = [held.get(key) for key in program.arguments]
        own = list(enumerate(program.arguments))
        inputs = [(index, self._positions[name]) for index, (kind, name) in own if kind == "input"]
        carries = [(index, name) for index, (kind, name) in own if kind == "carry"]
        if missing := [key for index, key in own if fixed[index] is None and key[0] not in ("input", "carry")]:
            raise KeyError(f"{program.phase}: nothing to pass for {missing}")
        bound = self.bound[phase] = Bound(program.run, fixed, inputs, carries)
        return bound

    def memory(self) -> dict[Argument, Tensor]:
        """What programs read and write here from step to step."""
        return _named("pool", self.pools) | _named("state", self.state)

    def ran(self, phase: str) -> None:
        """The program of a phase after the decision has run."""

    def conditioning(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What hoisted values depend on, besides the timestep."""
        return dict(zip(self._conditioning, self._conditioning_of(inputs), strict=True))

    def owned(self, results: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results as the caller may keep them: those of a CUDA graph lie where its next run will write."""
        return [result.clone() for result in results] if self.is_cuda else results

    def tensors(self) -> Iterable[Tensor]:
        """All that is held from step to step."""
        return self.state.values()


class CondContext(Context):
    """A context whose bookkeeping is state of the graph."""

    _rule: Rule | None = None
    _numbers: Mapping[str, Tensor]

    def numbers_of(self, rule: Rule) -> Mapping[str, Tensor]:
        """The schedule's numbers that the graph decides by, at addresses of their own: generations have lists of their own."""
        if self._rule is None:
            with torch.inference_mode(False):
                self._numbers = {name: number.to(self.compiled.device, copy=True) for name, number in rule.numbers.items()}
        elif self._rule is not rule:
            for name, number in rule.numbers.items():
                self._numbers[name].copy_(number)
        self._rule = rule
        return self._numbers

    def record(self) -> Book:
        return read_book(self.state["progress"], self.state["log"])

    def end(self) -> None:
        self.has_ended = True
        mark_restart(self.state["progress"])

    def is_over(self, timestep: float | None, sign: int) -> bool:
        return self.has_ended or is_over(self.state["progress"], timestep)


def new_context(compiled: ProgramSet) -> Context:
    """Empty state with fixed addresses."""
    return CondContext(compiled) if compiled.counts_itself else Context(compiled)


def latent_index(compiled: ProgramSet) -> int:
    """Where the latent, or the first of a list of latents, is among the inputs; the first of them where no program reads it."""
    names = [name.partition(".")[0] for _, name in compiled.placeholders]
    return names.index(compiled.latent) if compiled.latent in names else 0


def _memory_of(clock: Tensor) -> memoryview[float]:
    """The numbers of a clock, (n,), to be written by the host; as long as the tensor lives."""
    return memoryview((ctypes.c_float * len(clock)).from_address(clock.data_ptr())).cast("B").cast("f")


@lru_cache(maxsize=4096)
def _pinned(values: ClockValues) -> Tensor:
    """The numbers of a clock in memory that a device copies from without a wait; it is never written again."""
    with torch.inference_mode(False):
        return torch.tensor(values).pin_memory()


def _named(kind: Any, tensors: Mapping[str, Tensor]) -> dict[Argument, Tensor]:
    return {(kind, name): tensor for name, tensor in tensors.items()}
