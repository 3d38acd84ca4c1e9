"""Steps: the host's side of a cached model. A call becomes runs of programs; state, generations and decisions are kept here."""

from __future__ import annotations

import inspect
import logging
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rfc.bookkeeping import Direction, Generation, timestep_value
from rfc.conditioning import ConditioningGroups, group_name
from rfc.method import Method, programs_of
from rfc.storage import kept_like
from rfc_fx.errors import RFCError
from rfc_fx.ir.phase import HOISTED_PHASES
from rfc_fx.ir.plan import Plan
from rfc_fx.ir.program import CLOCK, RunnableProgram
from rfc_fx.runtime import summary as show
from rfc_fx.runtime.context import Context, Step, new_context, records
from rfc_fx.runtime.dynamo import skip_own_frame
from rfc_fx.runtime.hoisted import known
from rfc_fx.runtime.program_cache import Call, Key
from rfc_fx.runtime.sampler import Following
from rfc_fx.runtime.warnings import Warned

log = logging.getLogger("rfc_fx")


SPECULATION_LIMIT = 512 << 20
"""Up to so much state, an ESTIMATE that ran for nothing costs a device less than waiting for each decision."""


class StepModel(nn.Module):
    """Stands where a transformer stood and runs programs, whoever made them: this package's graphs, or an engine."""

    def __init__(
        self,
        name: str,
        signature: inspect.Signature,
        timestep: str | None,
        method: Method,
        *,
        speculate: bool | None = None,
    ) -> None:
        super().__init__()
        self._name = name
        self._method = method
        self._signature = signature
        self._timestep = timestep
        self._speculate = speculate
        self._numbers: dict[torch.device, dict[str, Tensor]] = {}
        self._timesteps: Tensor | None = None
        self._following: Following | None = None
        self._contexts: dict[tuple[str, Key], Context] = {}
        self._streams: dict[tuple[Key, str], ConditioningGroups] = {}
        self._direction = Direction()
        self._here = threading.local()
        self._last: Context | None = None
        self._warned = Warned(name)
        self._may_have_changed = False
        if timestep is None:
            log.warning("%s: no timestep argument found; call reset() before every generation", name)

    # ---- what there is to run ----------------------------------------------------------------------------------------

    @property
    def method(self) -> Method:
        """The caching method. Another threshold, interval or list may be assigned between steps; nothing compiles anew."""
        return self._method

    @method.setter
    def method(self, method: Method) -> None:
        old = self._method
        new = kept_like(old, method)
        if programs_of(new) != programs_of(old):
            raise RFCError(f"method: {new} needs other programs than {old}; call rfc_fx.transform again")
        self._method = new
        fresh = new.schedule.numbers()
        for numbers in self._numbers.values():
            for name, tensor in numbers.items():
                tensor.copy_(fresh[name])

    @abstractmethod
    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE."""

    @abstractmethod
    def _recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with the programs for it."""

    def _forget_if_changed(self) -> bool:
        """Whether what the programs were made from is another by now; if so, they are forgotten."""
        self._may_have_changed = False
        return False

    # ---- the call ----------------------------------------------------------------------------------------------------

    @skip_own_frame
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's.

        Only the programs are frames for torch.compile; the few lines between them are the host's.
        """
        with torch.no_grad():
            step = self._begin(args, kwargs)
            try:
                while step.run is not None:
                    step = self._advance(step, step.run(*step.given))
            except BaseException:
                step.context.end()  # the step counted, but some of its sites may not be refreshed
                raise
            return step.output

    @torch.compiler.disable
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        if self._may_have_changed:
            self._forget_if_changed()
        context, leaves = self._enter(args, kwargs)
        compiled = context.compiled
        if context.mail.is_full:  # of the step before, which did not wait for it
            self._learn(context)
        if context.clock.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        values = context.own | dict(zip(compiled.placeholders, compiled.inputs(leaves), strict=True))
        if self.method.tokens is not None:
            values |= {("number", name): tensor for name, tensor in self._numbers_on(compiled.device).items()}
        step = Step(context, values, (args, kwargs), [*HOISTED_PHASES, "PREFIX"])
        if context.fresh:
            context.begin()
        if self._knows_timestep(step):
            step.timestep = step.ends()[1]
        if self._restart_if_noise_grew(step) and self._forget_if_changed():
            again: Step = self._begin(args, kwargs)
            return again
        self._set_clock(step)
        return self._next(step)

    @torch.compiler.disable
    def _advance(self, step: Step, results: Any) -> Step:
        """Take what a program returned, and turn to the next; the step that comes back may be a new one."""
        assert step.program is not None
        if step.program.phase in (*HOISTED_PHASES, "PREFIX"):
            self._share(step, step.program, results)
            return self._next(step)
        if step.is_guessing:
            step.guess, step.is_guessing = results, False
            return self._turn(step, self._decide(step))
        if "decision" in step.program.results:  # of the step after this one
            *results, found = results
            step.context.mail.post(found)
            step.context.timestep_unchecked = False
        return step.finish(results)

    def _next(self, step: Step) -> Step:
        """The step with the program that is due; a new step where this one has to begin anew."""
        while step.pending:
            if (program := self._due(step, step.pending.pop(0))) is not None:
                return step.turn_to(program)
        if self._may_guess(step):
            step.is_guessing = True
            return step.turn_to(step.context.compiled.programs["ESTIMATE"])
        return self._turn(step, self._decide(step))

    def _turn(self, step: Step, chosen: RunnableProgram | None) -> Step:
        """The step with the chosen program; done, where that has run already; a new step where none was chosen."""
        if chosen is None:
            again: Step = self._begin(*step.call)
            return again
        if chosen.phase == "ESTIMATE" and step.guess is not None:
            return step.finish(step.guess)
        step.guess = None
        return step.turn_to(chosen)

    def _may_guess(self, step: Step) -> bool:
        """Whether ESTIMATE, which writes nothing, runs while the decision travels to the host; in vain where FULL is decided."""
        context, schedule = step.context, self.method.schedule
        if not context.mail.is_full or schedule.is_lagged or context.generation.step < schedule.warmup:
            return False
        if schedule.remembers == "all steps":  # an ESTIMATE writes what it saw
            return False
        wanted = self._speculate
        return context.clock.is_cuda and context.compiled.plan.state_bytes <= SPECULATION_LIMIT if wanted is None else wanted

    def _due(self, step: Step, phase: str) -> RunnableProgram | None:
        """The program of that phase, unless there is none or its results are known."""
        program = step.context.compiled.programs.get(phase)
        timesteps = self._timesteps if self._following is None else step.context.ahead.coming
        return None if program is None or (phase in HOISTED_PHASES and known(step, phase, timesteps)) else program

    def _share(self, step: Step, program: RunnableProgram, results: Any) -> None:
        names = [name.removeprefix("carry:") for name in program.results]
        if program.phase == "INVARIANT":
            step.context.ahead.keep(names, results)
            results = [step.context.ahead.held[name] for name in names]
        for name, tensor in zip(names, results, strict=True):
            if name == "decision":
                step.context.mail.post(tensor)
                step.context.timestep_unchecked, step.context.expected_timestep = not self._knows_timestep(step), step.expected_timestep
            else:
                step.values["carry", name] = tensor

    def _decide(self, step: Step) -> RunnableProgram | None:
        """The one decision of a step; PREFIX's error and the timestep come to the host in one transfer.

        None when the step has to begin anew: the model was changed since its programs were made, or what was computed ahead does not hold.
        """
        context = step.context
        eps: float | None = None
        schedule = self.method.schedule
        if context.mail.is_full and not schedule.is_lagged:
            eps, *noise = context.mail.read()
            step.timestep = noise[0] if noise else None
            if step.expected_timestep is not None and {*noise} != {step.expected_timestep}:  # not the order that was prepared
                context.ahead.trusted = False
                return None
            clock = context.generation.clock(schedule)
            if self._restart_if_noise_grew(step):
                if self._forget_if_changed():
                    return None
                if any(phase in context.compiled.programs for phase in HOISTED_PHASES):  # what was computed ahead is the last generation's
                    return None
                self._set_clock(step)
            elif context.generation.clock(schedule) != clock:  # the generation is longer than was known when eps was measured
                return None
        if schedule.is_placed and context.generation.step == schedule.num_steps:
            self._warned.of_length(schedule, schedule.num_steps + 1, " or more")
        phase = context.generation.decide(schedule, self._numbers_on(torch.device("cpu")), eps, step.timestep)
        if self._following is not None:
            self._following.decided(step)
        return context.compiled.programs[phase]

    def _knows_timestep(self, step: Step) -> bool:
        """Whether the host looks at the timestep itself, as no decision brings it in time."""
        compiled = step.context.compiled
        if compiled.timestep is None:
            return False
        lagged = self.method.schedule.is_lagged and step.values["input", compiled.timestep].device.type == "cpu"
        return lagged or "PREFIX" not in compiled.programs

    def _learn(self, context: Context) -> None:
        """Take in the error of the step before and, where the host did not see it, its timestep; RFCError where that began a generation."""
        eps, *noise = context.mail.read()
        context.generation.learn(self.method.schedule, eps)
        as_prepared = context.expected_timestep is None or {*noise} == {context.expected_timestep}
        if not context.timestep_unchecked or not noise or (as_prepared and context.generation.follows(noise[0], self._direction)):
            return
        context.end()
        raise RFCError(
            f"{self._name}: a step at timestep {noise[0]:g} was taken for the next one of the generation before: lagged "
            "decisions read a timestep on the device one step late; call reset() before every generation, prepare() the timesteps as they "
            "come, or pass the timestep as a CPU tensor"
        )

    def _restart_if_noise_grew(self, step: Step) -> bool:
        context = step.context
        sign = self._direction.sign
        if not self._direction.ends(context.generation, step.timestep):
            if self._direction.sign != sign:
                way = "rises" if sign > 0 else "falls"
                log.info("%s: the %s %s from noise to image in this sampler", self._name, self._timestep, way)
            return False
        self._warned.at_the_end(context.record(self.method.schedule), self.method.schedule)
        context.begin(context.generation.successor(self.method.schedule))
        return True

    def _set_clock(self, step: Step) -> None:
        context = step.context
        context.clock.copy_(torch.tensor(context.generation.clock(self.method.schedule)), non_blocking=True)
        step.values[CLOCK] = context.clock

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Context, list[Any]]:
        """The state set and the flat arguments of a call."""
        call = self._recognise(args, kwargs)
        name = getattr(self._here, "name", None)
        return self._context(self._stream(call) if name is None else self._own(name), call), call.leaves

    def _stream(self, call: Call) -> str:
        """Name of the context of a call outside `cache_context`: conditional and unconditional calls get one each."""

        def over(place: int) -> bool:
            context = self._contexts.get((self._own(group_name(place)), call.key))
            return context is None or context.is_over(timestep_value(call.timestep), self._direction)

        streams = self._streams.setdefault((call.key, self._own("")), ConditioningGroups())
        return self._own(group_name(streams.find(call.conditioning, over)))

    def _own(self, name: str) -> str:
        """What the context of that name is called for the present call."""
        return name

    def _context(self, name: str, call: Call) -> Context:
        context = self._contexts.get((name, call.key))
        if context is None:
            context = self._contexts[name, call.key] = self._new_context(call)
        self._last = context
        return context

    def _new_context(self, call: Call) -> Context:
        return new_context(call.compiled)

    def _numbers_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._numbers:
            with torch.inference_mode(False):
                self._numbers[device] = {name: t.to(device) for name, t in self.method.schedule.numbers().items()}
        return self._numbers[device]

    def prepare(self, timesteps: Tensor | Sequence[float] | None) -> None:
        """Say which timesteps the coming generations will have, as the model will be called with them: (S,) in order, None for unknown.

        With `hoist=True` what depends on the timestep alone is then computed for all steps at once, when a generation begins.
        A step at another timestep computes its own; the results are the same up to the rounding of batched products.
        """
        self._following = None
        if timesteps is None:
            self._timesteps = None
            return
        with torch.inference_mode(False):
            given = torch.as_tensor(timesteps).detach().clone()
        if given.dim() != 1 or not given.numel():
            raise ValueError(f"prepare: timesteps must have shape (S,) with S at least 1, got {tuple(given.shape)}")
        self._timesteps = given
        self._warned.of_length(self.method.schedule, len(given))

    def follow(self, pipeline: Any) -> None:
        """Take the timesteps of every coming generation from this pipeline's scheduler (or from a scheduler), instead of `prepare`.

        The first three steps of a generation compute their own modulation, and tell what the pipeline makes of the scheduler's timesteps
        (FLUX divides by 1000, Z-Image counts from 0 to 1); the other steps read a table. Raises TypeError where there is no scheduler.
        """
        self._following = Following(pipeline)

    # ---- what the user asks ------------------------------------------------------------------------------------------

    @property
    def stats(self) -> Generation:
        """Record of the current generation (of the context that ran last): `nfc`, `phases`, `eps`."""
        if self._last is None:
            return Generation()
        return self._last.record(self.method.schedule)

    @property
    def contexts(self) -> dict[str, Generation]:
        """Records of the current generations by context name; "cond (2)" is the second set of programs that ran as "cond"."""
        return records(self._contexts, self.method.schedule)

    def summary(self) -> show.Summary:
        """What was computed, what was skipped and what it held in memory; print it."""
        held = sum(tensor.nbytes for context in self._contexts.values() for tensor in context.state.values())
        plan = self.plan() if self._last is None else self._last.compiled.plan
        return show.Summary(self._name, self.method, plan, self.contexts, held)

    def reset(self) -> None:
        """End the generation of every context: the next call begins with empty state."""
        for context in self._contexts.values():
            self._warned.at_the_end(context.record(self.method.schedule), self.method.schedule)
            context.end()
        for streams in self._streams.values():
            streams.forget()
        self._may_have_changed = True

    # ---- diffusers' conventions --------------------------------------------------------------------------------------

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Name the state set that calls inside use, e.g. "cond" and "uncond"; per thread, may be nested.

        Without a name, calls with different conditioning get a state set each (`rfc.conditioning`). `where` (step_index, sigma, ...)
        is what pipelines tell caches that count by it; here the timestep says it.
        """
        before = getattr(self._here, "name", None)
        self._here.name = name
        try:
            yield
        finally:
            self._here.name = before

    def _reset_stateful_cache(self, *args: Any, **kwargs: Any) -> None:
        self.reset()
