"""CachedModel: stands where the transformer stood, owns the state, and runs PREFIX, FULL and ESTIMATE."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rfc.generation import Direction, Generation, Phase, timestep_argument, timestep_value
from rfc.method import CachingMethod
from rfc.storage import kept_like
from rfc.streams import Streams, stream_name
from rfc_fx import show
from rfc_fx.ahead import Following, known
from rfc_fx.calls import Call, Form, new_call
from rfc_fx.capture import named_arguments
from rfc_fx.context import Context, Step, new_context
from rfc_fx.errors import RFCError
from rfc_fx.frames import between_programs
from rfc_fx.guard import Guarded
from rfc_fx.program import Compiled, Options, Plan, build, signature
from rfc_fx.sets import MAX_SIGNATURES, Key, ProgramSets
from rfc_fx.specialize import AHEAD, CLOCK, Program
from rfc_fx.structure import Fingerprint, fingerprint, refuse

log = logging.getLogger("rfc_fx")


GUESSED_BYTES = 512 << 20
"""Up to so much state, an ESTIMATE that ran for nothing costs a device less than waiting for each decision."""


class NothingSkippedWarning(UserWarning):
    """A generation ran every step in full although its schedule could have skipped some."""


class CachedModel(nn.Module):
    """A diffusion transformer whose blocks are computed in full or estimated, step by step.

    Call it as the model; `config`, `dtype`, `device` and every other attribute are the model's. The model's weights are
    used in place, none is copied. Made by `rfc_fx.transform`.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        super().__init__()
        self.model = model
        self.__module__ = type(model).__module__  # with __class__: a saved pipeline names the model, and loads without this package
        self.options = options
        self._numbers: dict[torch.device, dict[str, Tensor]] = {}
        self._timesteps: Tensor | None = None
        self._following: Following | None = None
        self._sets = ProgramSets()
        self._forms: list[Form] = []
        self._contexts: dict[tuple[str, Key], Context] = {}
        self._streams: dict[tuple[Key, str], Streams] = {}
        self._direction = Direction()
        self._here = threading.local()
        self._last: Context | None = None
        self._warned = False
        self._made_from: Fingerprint = ()
        self._may_have_changed = False
        self._prepared: Context | None = None
        self._here_numbers: dict[str, Tensor] = {}
        self._signature = inspect.signature(model.forward)
        self._timestep = timestep_argument(model.forward)
        if self._timestep is None:
            log.warning("%s: no timestep argument found; call reset() before every generation", type(model).__name__)
        self.eval()

    # ---- the call ----------------------------------------------------------------------------------------------------

    @between_programs
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
        step = Step(context, values, (args, kwargs), [*AHEAD, "PREFIX"])
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
        if step.program.phase not in ("FULL", "ESTIMATE"):
            self._share(step, step.program, results)
            return self._next(step)
        if step.is_guessing:
            step.guess, step.is_guessing = results, False
            return self._turn(step, self._decide(step))
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

    def _turn(self, step: Step, chosen: Program | None) -> Step:
        """The step with the chosen program; done, where that has run already; a new step where none was chosen."""
        if chosen is None:
            again: Step = self._begin(*step.call)
            return again
        if chosen.phase == "ESTIMATE" and step.guess is not None:
            return step.finish(step.guess)
        return step.turn_to(chosen)

    def _may_guess(self, step: Step) -> bool:
        """Whether ESTIMATE, which writes nothing, runs while the decision travels to the host; in vain where FULL is decided."""
        context, schedule = step.context, self.options.method.schedule
        if not context.mail.is_full or schedule.is_lagged or context.generation.step < schedule.warmup:
            return False
        wanted = self.options.speculate
        return context.clock.is_cuda and context.compiled.plan.state_bytes <= GUESSED_BYTES if wanted is None else wanted

    def _due(self, step: Step, phase: str) -> Program | None:
        """The program of that phase, unless there is none or its results are known."""
        program = step.context.compiled.programs.get(phase)
        timesteps = self._timesteps if self._following is None else step.context.ahead.coming
        return None if program is None or (phase in AHEAD and known(step, phase, timesteps)) else program

    def _share(self, step: Step, program: Program, results: Any) -> None:
        names = [name.removeprefix("carry:") for name in program.results]
        if program.phase == "INVARIANT":
            step.context.ahead.keep(names, results)
            results = [step.context.ahead.held[name] for name in names]
        for name, tensor in zip(names, results, strict=True):
            if name == "decision":
                step.context.mail.post(tensor)
                step.context.is_blind, step.context.assumed = not self._knows_timestep(step), step.assumed
            else:
                step.values["carry", name] = tensor

    def _decide(self, step: Step) -> Program | None:
        """The one decision of a step; PREFIX's error and the timestep come to the host in one transfer.

        None when the step has to begin anew: the model was changed since its programs were made, or what was computed ahead does not hold.
        """
        context = step.context
        eps: float | None = None
        schedule = self.options.method.schedule
        if context.mail.is_full and not schedule.is_lagged:
            eps, *noise = context.mail.read()
            step.timestep = noise[0] if noise else None
            if step.assumed is not None and {*noise} != {step.assumed}:  # not the order that was prepared
                context.ahead.trusted = False
                return None
            clock = context.generation.clock()
            if self._restart_if_noise_grew(step):
                if self._forget_if_changed():
                    return None
                if any(phase in context.compiled.programs for phase in AHEAD):  # what was computed ahead is the last generation's
                    return None
                self._set_clock(step)
            elif context.generation.clock() != clock:  # the generation is longer than was known when eps was measured
                return None
        phase: Phase = context.generation.decide(schedule, self._numbers_on(torch.device("cpu")), eps, step.timestep)
        if self._following is not None:
            self._following.decided(step)
        return context.compiled.programs[phase]

    def _knows_timestep(self, step: Step) -> bool:
        """Whether the host looks at the timestep itself, as no decision brings it in time."""
        compiled = step.context.compiled
        if compiled.timestep is None:
            return False
        lagged = self.options.method.schedule.is_lagged and step.values["input", compiled.timestep].device.type == "cpu"
        return lagged or "PREFIX" not in compiled.programs

    def _learn(self, context: Context) -> None:
        """Take in the error of the step before and, where the host did not see it, its timestep; RFCError where that began a generation."""
        eps, *noise = context.mail.read()
        context.generation.learn(eps)
        as_prepared = context.assumed is None or {*noise} == {context.assumed}
        if not context.is_blind or not noise or (as_prepared and context.generation.follows(noise[0], self._direction)):
            return
        context.end()
        raise RFCError(
            f"{type(self.model).__name__}: a step at timestep {noise[0]:g} was taken for the next one of the generation before: lagged "
            "decisions read a timestep on the device one step late; call reset() before every generation, prepare() the timesteps as they "
            "come, or pass the timestep as a CPU tensor"
        )

    def _restart_if_noise_grew(self, step: Step) -> bool:
        context = step.context
        sign = self._direction.sign
        if not self._direction.ends(context.generation, step.timestep):
            if self._direction.sign != sign:
                way = "rises" if sign > 0 else "falls"
                log.info("%s: the %s %s from noise to image in this sampler", type(self.model).__name__, self._timestep, way)
            return False
        self._warn_if_nothing_skipped(context)
        context.begin(context.generation.successor(self.options.method.schedule))
        return True

    @staticmethod
    def _set_clock(step: Step) -> None:
        context = step.context
        context.clock.copy_(torch.tensor(context.generation.clock()), non_blocking=True)
        step.values[CLOCK] = context.clock

    def _forget_if_changed(self) -> bool:
        """Drop programs and state when the model is no longer what they were made from: adapters, types, places, modules."""
        self._may_have_changed = False
        now = fingerprint(self.model)
        changed = len(self._sets) > 0 and now != self._made_from
        if changed:
            log.warning("%s was changed since it was captured; it is captured anew", type(self.model).__name__)
            for held in (self._sets, self._contexts, self._streams, self._forms):
                held.clear()
            self._last = self._prepared = None
        self._made_from = now
        return changed

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Context, list[Any]]:
        """The state set and the flat arguments of a call."""
        if self.model.training:
            raise RFCError(f"{type(self.model).__name__} is in training mode; call .eval() first: dropout is not part of a cached step")
        call = self._recognise(args, kwargs)
        name = getattr(self._here, "name", None)
        return self._context(self._stream(call) if name is None else self._own(name), call), call.leaves

    # ---- programs and state ------------------------------------------------------------------------------------------

    def _recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with its programs; one that is written as an earlier one was, and differs in values alone, is recognised at once."""
        for form in self._forms:
            call = form.match(self._sets.get(form.key), args, kwargs)
            if call is not None and self._sets.holds(form.key, call.leaves):
                self._sets.use(form.key)
                return call
        arguments = named_arguments(self._signature, args, kwargs)
        compiled, key, leaves = self._lookup(arguments)
        call = new_call(key, compiled, leaves, arguments, self._timestep)
        if (new := Form.of(call, arguments, args, kwargs)) is not None:
            self._forms = [new, *self._forms][:MAX_SIGNATURES]
        return call

    def _lookup(self, arguments: dict[str, Any]) -> tuple[Compiled, Key, list[Any]]:
        shape, leaves = signature(arguments, self.model)
        key = self._sets.find(shape, leaves)
        if key is None:
            self._forget_if_changed()
            refuse(self.model)
            if len(self._sets):
                log.warning("%s: new call signature, capturing programs number %d", type(self.model).__name__, len(self._sets) + 1)
            with torch.inference_mode(False):
                compiled = build(self.model, arguments, self.options, self._timestep)
            key = self._sets.add(shape, leaves, compiled)
            dropped = self._sets.evict()
            self._forms = [form for form in self._forms if form.key not in dropped]
            self._contexts = {name: context for name, context in self._contexts.items() if name[1] not in dropped}
            self._streams = {name: streams for name, streams in self._streams.items() if name[0] not in dropped}
        return self._sets.use(key), key, leaves

    def _stream(self, call: Call) -> str:
        """Name of the context of a call outside `cache_context`: conditional and unconditional calls get one each."""

        def over(place: int) -> bool:
            context = self._contexts.get((self._own(stream_name(place)), call.key))
            return context is None or context.is_over(timestep_value(call.timestep), self._direction)

        streams = self._streams.setdefault((call.key, self._own("")), Streams())
        return self._own(stream_name(streams.find(call.conditioning, over)))

    def _own(self, name: str) -> str:
        """What the context of that name is called for the present call."""
        return name

    def _context(self, name: str, call: Call) -> Context:
        context = self._contexts.get((name, call.key))
        if context is None:
            context = self._contexts[name, call.key] = new_context(call.compiled)
        self._last = context
        return context

    def _numbers_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._numbers:
            with torch.inference_mode(False):
                self._numbers[device] = {name: t.to(device) for name, t in self.options.method.schedule.numbers().items()}
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

    def follow(self, pipeline: Any) -> None:
        """Take the timesteps of every coming generation from this pipeline's scheduler (or from a scheduler), instead of `prepare`.

        The first three steps of a generation compute their own modulation, and tell what the pipeline makes of the scheduler's timesteps
        (FLUX divides by 1000, Z-Image counts from 0 to 1); the other steps read a table. Raises TypeError where there is no scheduler.
        """
        self._following = Following(pipeline)

    def trace(self, *args: Any, **kwargs: Any) -> Plan:
        """Capture for these arguments without running a step; return the plan."""
        return self._enter(args, kwargs)[0].compiled.plan

    # ---- what the user asks ------------------------------------------------------------------------------------------

    @property
    def method(self) -> CachingMethod:
        """The caching method. Another threshold, interval or list may be assigned between steps; nothing compiles anew."""
        return self.options.method

    @method.setter
    def method(self, method: CachingMethod) -> None:
        old = self.options.method
        new = kept_like(old, method)
        same = (
            new.estimator == old.estimator
            and type(new.schedule) is type(old.schedule)
            and (new.schedule.forecaster == old.schedule.forecaster)
            and getattr(new.schedule, "over", None) == getattr(old.schedule, "over", None)
            and new.schedule.is_lagged == old.schedule.is_lagged
        )
        if not same:
            raise RFCError(f"method: {new} needs other programs than {old}; call rfc_fx.transform again")
        self.options = replace(self.options, method=new)
        fresh = new.schedule.numbers()
        for numbers in self._numbers.values():
            for name, tensor in numbers.items():
                tensor.copy_(fresh[name])

    @property
    def stats(self) -> Generation:
        """Record of the current generation (of the context that ran last): `nfc`, `phases`, `eps`."""
        if self._last is None:
            return Generation()
        return self._last.record(self.options.method.schedule)

    @property
    def contexts(self) -> dict[str, Generation]:
        """Records of the current generations by context name; "cond (2)" is the second set of programs that ran as "cond"."""
        schedule = self.options.method.schedule
        records: dict[str, Generation] = {}
        times = Counter[str]()
        for (name, _), context in self._contexts.items():
            times[name] += 1
            records[name if times[name] == 1 else f"{name} ({times[name]})"] = context.record(schedule)
        return records

    @property
    def guarded(self) -> Guarded:
        """The guarded graph of the latest signature; print `show.guarded_text(model.guarded)` or `.module.graph`."""
        return self._latest().guarded

    @property
    def programs(self) -> dict[str, Program]:
        """PREFIX (where data decides), FULL and ESTIMATE of the latest signature."""
        return self._latest().programs

    @property
    def compiled(self) -> Compiled:
        """All that was made for the latest signature."""
        return self._latest()

    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE, before the first run.

        `plan().alternatives["block"][torch.int8]` are the bytes that another granularity and `state_dtype` would take.

        Raises RFCError when nothing has been captured: pass `example_inputs` to `transform`, or call the model once.
        """
        return self._latest().whole_plan

    def summary(self) -> show.Summary:
        """What was computed, what was skipped and what it held in memory; print it."""
        held = sum(tensor.nbytes for context in self._contexts.values() for tensor in context.state.values())
        return show.Summary(type(self.model).__name__, self.options.method, self._latest().plan, self.contexts, held)

    def reset(self) -> None:
        """End the generation of every context: the next call begins with empty state."""
        for context in self._contexts.values():
            self._warn_if_nothing_skipped(context)
            context.end()
        for streams in self._streams.values():
            streams.forget()
        self._may_have_changed = True

    def _latest(self) -> Compiled:
        if (latest := self._sets.latest) is None:
            raise RFCError(
                f"{type(self.model).__name__}: nothing captured yet; pass example_inputs to rfc_fx.transform or call the model once"
            )
        return latest

    def _warn_if_nothing_skipped(self, context: Context) -> None:
        schedule = self.options.method.schedule
        if self._warned:
            return
        record = context.record(schedule)
        if record.never_skipped():
            self._warned = True
            warnings.warn(
                f"{type(self.model).__name__}: all {record.step} steps of a generation were computed in full although {schedule} "
                "could skip; raise its threshold, or check that one generation reaches one context",
                NothingSkippedWarning,
                stacklevel=2,
            )

    # ---- diffusers' conventions --------------------------------------------------------------------------------------

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Name the state set that calls inside use, e.g. "cond" and "uncond"; per thread, may be nested.

        Without a name, calls with different conditioning get a state set each (`rfc.streams`). `where` (step_index, sigma, ...)
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

    @property  # type: ignore[misc]  # nobody assigns another class to it
    def __class__(self) -> Any:
        """The model's class: pipelines ask for it before they load, scale, fuse, disable, unload or save what a model holds."""
        model = self.__dict__.get("_modules", {}).get("model")
        return type(self) if model is None else type(model)

    def _get_name(self) -> str:
        return type(self).__name__

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedModel:
        """A copy of the model with the same options, its own weights and no state."""
        twin = type(self)(copy.deepcopy(self.model, memo), self.options)
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        raise RFCError(
            "a CachedModel holds programs and state and is not pickled; pickle the model and the method, and call rfc_fx.transform again"
        )
