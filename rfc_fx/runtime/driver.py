"""Driver: one step of a cached model, read from top to bottom. A call becomes runs of programs; state and decisions are kept here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from rfc.bookkeeping import Book, ClockValues, Rule, clock_values, continues, learn, move_to
from rfc.method import Method
from rfc_fx.errors import RFCError
from rfc_fx.ir.phase import PREFIX
from rfc_fx.runtime import calls
from rfc_fx.runtime.calls import timestep_ends
from rfc_fx.runtime.context import Context
from rfc_fx.runtime.decide import Decision, Facts, Reason, Restart, bounded, decide
from rfc_fx.runtime.generation import Generation
from rfc_fx.runtime.generations import Generations
from rfc_fx.runtime.hoisted import carry_names
from rfc_fx.runtime.hoisting import known_values
from rfc_fx.runtime.program_cache import ProgramSource
from rfc_fx.runtime.ranks import Ranks, raise_named
from rfc_fx.runtime.recall import Recall
from rfc_fx.runtime.rules import Rules, place

log = logging.getLogger("rfc_fx")

SPECULATION_LIMIT = 512 << 20
"""Largest state per context for which a discarded speculative ESTIMATE is cheaper than a device-to-host sync."""

Run = tuple[Callable[..., Any], list[Tensor]]
"""A program to run, and its arguments."""


class Driver:
    """Takes the steps of one model: its programs, its contexts and a method, whoever made them."""

    def __init__(self, name: str, method: Method, programs: ProgramSource, generations: Generations, speculate: bool | None) -> None:
        self.name = name
        self.programs, self.generations = programs, generations
        self.warned = generations.warned
        self.rules = Rules(method, self.warned)
        self.may_have_changed = False
        """Whether the next step looks at the model first: a generation has been ended from outside."""
        self._speculate = speculate
        self.ranks: tuple[Ranks, ...] = ()  # the groups that steps are shared with
        self.recall: Recall | None = None  # hands out full steps again, where one is set

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Run, Any, Any]:
        """One step of a call: yields every program with its arguments, is sent its results, and returns the model's output."""
        reasons: list[Reason] = []
        context: Context | None = None
        due = True  # whether the step is still to be counted
        try:
            while True:
                if (plain := self.look_at_the_model()) is not None:
                    return self.generations.beside(args, kwargs, plain(*args, **kwargs))
                call = self.programs.recognise(args, kwargs)
                generation, context = self.generations.of(call, again=context if reasons else None)
                compiled, inputs = call.compiled, call.inputs
                rule = self.rules.of(generation, context)
                if context.readback.pending:  # the error of the step before, which did not wait for it
                    self._learn(generation, context, rule)
                if context.has_ended:
                    context.begin(Book())
                place(generation, context, rule)
                if context.is_cuda:
                    torch.compiler.cudagraph_mark_step_begin()

                ends = self._seen_timestep(generation, context, inputs, rule)
                awaits = context.prefix is not None and not rule.is_lagged
                facts = Facts(None if ends is None else ends[1], generation.sign, awaits_data=awaits)
                decision = self._decide(generation, context, rule, facts)
                if isinstance(decision.verdict, Restart):
                    self._begin_anew(context, decision.verdict, reasons)
                    continue
                due = awaits
                clock = clock_values(context.book, rule.schedule) if awaits else context.book.clock
                context.set_clock(clock)

                carries: dict[str, Tensor] = {}
                expected: float | None = None
                for phase in context.hoisted_phases:
                    number = context.book.number - (not awaits)
                    values, expected = known_values(generation, phase, context, inputs, carries, ends, number)
                    if values is None:
                        results = yield self._call(context, phase, inputs, carries)
                        names = carry_names(compiled.programs[phase])
                        values = context.hoisted.keep(names, results) if phase == "INVARIANT" else dict(zip(names, results, strict=True))
                    carries.update(values)
                if context.prefix is not None:
                    error, *results = yield self._call(context, PREFIX, inputs, carries)
                    context.readback.start(error, timestep_unchecked=ends is None, expected_timestep=expected)
                    carries.update(zip(carry_names(context.prefix)[1:], results, strict=True))
                draft = None
                if awaits:
                    if self._speculates(context, rule):  # ESTIMATE writes nothing; in vain where FULL is decided
                        draft = yield self._call(context, "ESTIMATE", inputs, carries)
                    facts = self._measured(generation, context, clock)
                    decision = self._decide(generation, context, rule, facts)
                    if isinstance(decision.verdict, Restart):
                        self._begin_anew(context, decision.verdict, reasons)
                        continue
                    if context.book.clock != clock:  # this is the first step of a generation
                        context.set_clock(context.book.clock)
                break

            phase, due = context.book.phases[-1], False
            if reasons:
                context.book = context.book._replace(restarts=(*context.book.restarts, *reasons))
            if phase == "ESTIMATE" and draft is not None:
                results = draft
            else:
                del draft
                known = None if self.recall is None else self.recall.results(context, phase, inputs)
                results = (yield self._call(context, phase, inputs, carries)) if known is None else known
                if self.recall is not None and known is None:
                    self.recall.keep(context, phase, results)
            if rule.is_lagged and context.prefix is None:  # the phase's own error, of the step after this one
                results = self._with_error(context, phase, results)
            outputs = context.owned(results)
            generation.note(context.at, outputs)
            context.ran(phase)
            context.before = context.at
            return compiled.unflatten(outputs)
        except BaseException as error:
            where = "its first step" if context is None else f"step {len(context.book.phases) + due} ({context.running})"
            if context is not None:
                generation.failed(context)  # the step counted, but some of its sites may not be refreshed
            raise_named(self.ranks, error, where)
            raise

    def ended(self, generation: Generation) -> None:
        """Say what was wrong with a generation that has ended."""
        self.rules.ended(generation)

    def look_at_the_model(self) -> Callable[..., Any] | None:
        """Drop the programs where the model is another by now: looked at thoroughly where a generation was ended from outside or opened.

        Returns the plain model where hooks are on it for this call alone: it takes the call, and programs and state stay as they are.
        """
        is_other = self.programs.is_touched() or (self.may_have_changed and self.programs.has_changed())
        if is_other or self.programs.is_empty:
            names, plain = self.programs.visitors()
            if names and plain is not None:
                self.warned.of_visitors(names)
                return plain
        if is_other:
            self.programs.drop()
        self.may_have_changed = False
        return None

    def _learn(self, generation: Generation, context: Context, rule: Rule) -> None:
        """Take in the error of the step before and, where no host saw it, its timestep; RFCError where that began a generation."""
        readback = context.readback
        unchecked, expected = readback.timestep_unchecked, readback.expected_timestep
        eps, *ends = readback.wait()
        context.book = learn(context.book, rule.schedule, eps)
        if not unchecked or not ends:
            return
        if (expected is None or {*ends} == {expected}) and continues(context.book, ends[0], generation.sign):
            context.book = move_to(context.book, ends[0])
            return
        context.end()
        raise RFCError(
            f"{self.name}: a step at timestep {ends[0]:g} was taken for the next one of the generation before: lagged "
            "decisions read a timestep on the device one step late; call reset() before every generation, prepare() the timesteps as they "
            "come, or pass the timestep as a CPU tensor"
        )

    def _seen_timestep(self, generation: Generation, context: Context, inputs: Sequence[Tensor], rule: Rule) -> tuple[float, float] | None:
        """Smallest and largest timestep of the batch, where they are known, or the host looks itself: no decision brings them in time."""
        index = context.timestep_index
        if index is None:
            return None
        timestep = inputs[index]
        if (known := context.at.timestep) is not None and timestep.numel() <= len(inputs[context.latent_index]):
            return generation.timestep_check.ends(timestep, known, generation.timetable)
        if context.prefix is not None and not (rule.is_lagged and calls.on_host(timestep)):
            return None
        return context.at.ends or timestep_ends(timestep)

    def _decide(self, generation: Generation, context: Context, rule: Rule, facts: Facts) -> Decision:
        """Decide by the facts; the book and the direction that come of it are kept."""
        decision = decide(context.book, rule, facts)
        if decision.begins and self.programs.has_changed():
            decision = decide(context.book, rule, facts._replace(model_changed=True))
        if decision.sign != generation.sign:
            generation.sign = decision.sign
            if decision.sign < 0:
                self.warned.of_rising()
            log.info("%s: the timestep %s from noise to image in this sampler", self.name, "rises" if decision.sign < 0 else "falls")
        if decision.begins:
            self.warned.at_the_end(context.record(), context.schedule or rule.schedule)
            context.begin(decision.book)
        else:
            context.book = decision.book
        if rule.last is not None and decision.book.number == rule.last + 1:
            self.warned.of_step(rule.schedule, decision.book.number)
        return decision

    def _begin_anew(self, context: Context, restart: Restart, reasons: list[Reason]) -> None:
        """Log and count a restart, and drop what it says does not hold."""
        reasons.append(restart.reason)
        log.info("%s: a step begins anew: %s", self.name, restart.reason)
        bounded(self.name, reasons)
        if restart.reason is Reason.OTHER_ORDER:
            context.hoisted.distrust()
        elif restart.reason is Reason.MODEL_CHANGED:
            self.programs.drop()

    def _call(self, context: Context, phase: str, inputs: Sequence[Tensor], carries: dict[str, Tensor]) -> Run:
        context.running = phase
        bound = context.bound.get(phase) or context.bind(phase, self.rules.for_tokens(context.compiled.device))
        return bound.direct(), bound.arguments(inputs, carries)

    def _speculates(self, context: Context, rule: Rule) -> bool:
        """Whether ESTIMATE runs while the decision travels to the host."""
        if rule.is_lagged or rule.schedule.remembers == "all steps" or context.book.number < rule.schedule.warmup:
            return False
        if self._speculate is not None:
            return self._speculate
        return context.is_cuda and context.compiled.plan.state_bytes <= SPECULATION_LIMIT

    def _measured(self, generation: Generation, context: Context, clock: ClockValues) -> Facts:
        """Wait for the decision's numbers: the error and the timestep come in one transfer."""
        expected = context.readback.expected_timestep
        eps, *measured = context.readback.wait()
        ends = measured
        if context.at.timestep is not None:
            ends = [context.at.timestep]
        return Facts(
            timestep=ends[0] if ends else None,
            sign=generation.sign,
            eps=eps,
            clock=clock,
            as_prepared=expected is None or {*measured} == {expected},
            hoists=bool(context.hoisted_phases),
        )

    def _with_error(self, context: Context, phase: str, results: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs of a program; where it measures its own error, that goes on its way to the host."""
        if "decision" not in context.compiled.programs[phase].results:
            return results
        *outputs, error = results
        context.readback.start(error)
        return outputs
