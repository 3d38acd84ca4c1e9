"""StepModel: the module that stands where a transformer stood; its face to pipelines, over a driver."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import weakref
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from rfc.method import Method, programs_of
from rfc.record import Record
from rfc.storage import kept_like
from rfc_fx.errors import RFCError
from rfc_fx.ir.plan import Plan
from rfc_fx.ir.torch_versions import way_out
from rfc_fx.runtime.compiled_runs import CompiledRuns
from rfc_fx.runtime.driver import Driver, Run
from rfc_fx.runtime.dynamo import is_compiling, passed_over, skip_own_frame
from rfc_fx.runtime.generation import Generation
from rfc_fx.runtime.generations import Generations
from rfc_fx.runtime.program_cache import ProgramSource
from rfc_fx.runtime.sampler import Known, on_programs_of
from rfc_fx.runtime.signed import signed
from rfc_fx.runtime.stopwatch import Stopwatch
from rfc_fx.runtime.summary import Summary
from rfc_fx.runtime.timetable import said

log = logging.getLogger("rfc_fx")


Order = Generator[Run, Any, Any]
"""A step under way: yields what to run, is sent the results."""


class StepModel(nn.Module):
    """Stands where a transformer stood and runs programs, whoever made them: this package's graphs, or an engine."""

    driver: Driver

    def __init__(
        self,
        name: str,
        signature: inspect.Signature,
        timestep: str | None,
        method: Method,
        programs: ProgramSource,
        generations: Generations,
        *,
        speculate: bool | None = None,
    ) -> None:
        super().__init__()
        self._compiled: CompiledRuns | None = None
        self.stopwatch: Stopwatch | None = None
        """Measures every step, where one is set."""
        self.model_name, self.call_signature, self.timestep_argument = name, signature, timestep
        self.forward = signed(self, type(self).forward, signature)  # type: ignore[method-assign]  # the same code under another signature
        self.driver = Driver(name, method, programs, generations, speculate)
        itself = weakref.ref(self)
        generations.run = lambda *args, **kwargs: itself()(*args, **kwargs)  # type: ignore[misc]  # a generation's model is there
        generations.ended = self.driver.ended
        if timestep is None:
            log.warning("%s: no timestep argument found; call reset() before every generation", name)

    # ---- the call ----------------------------------------------------------------------------------------------------

    @passed_over
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As of every module; without hooks forward is called at once: whether torch.jit traces takes 8 us to see between programs."""
        hooks = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        if hooks or _has_any_global_hook() or self._compiled_call_impl is not None:
            return super().__call__(*args, **kwargs)
        return self.forward(*args, **kwargs)

    @skip_own_frame
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's.

        Only the programs are frames for torch.compile; the few lines between them are the host's.
        """
        stopwatch, compiled = self.stopwatch, self._compiled
        begin = None if stopwatch is None else stopwatch.now()
        is_seen = is_compiling() is not None
        order: Order = self._begin(args, kwargs) if is_seen else self.driver.step(args, kwargs)
        turn = functools.partial(self._turn, order) if is_seen else order.send
        is_recording = torch.is_grad_enabled()
        try:
            if is_recording:
                torch._C._set_grad_enabled(False)
            run, arguments = turn(None)
            while True:
                if compiled is not None:
                    run = compiled.of(run)
                try:
                    results = run(*arguments)
                except BaseException as error:
                    error.add_note(f"{self.model_name}: raised by a program that was captured from the model")
                    if (what_to_do := way_out(error)) is not None:
                        error.add_note(f"{self.model_name}: {what_to_do}")
                    self._fail(order, error)
                    raise
                run, arguments = turn(results)
        except StopIteration as done:
            output = done.value
        finally:
            if is_recording:
                torch._C._set_grad_enabled(True)
        if stopwatch is not None:
            stopwatch.note(begin, self.stats.phases[-1])
        return output

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every program at its first run, with these arguments of torch.compile; what lies between them, and hooks, stay Python.

        In place, as `torch.nn.Module.compile`; `torch.compile(model)` returns a wrapper instead.
        """
        self._compiled = CompiledRuns(args, kwargs)

    @property
    def compile_settings(self) -> Mapping[str, Any] | None:
        """The keyword arguments with which programs are compiled; None where they are not, or a wrapper compiles them."""
        return None if self._compiled is None else self._compiled.settings

    @torch.compiler.disable
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Order:
        return self.driver.step(args, kwargs)

    @torch.compiler.disable
    def _turn(self, order: Order, results: Any) -> Run:
        """Hand over what the program returned, and turn to the next; StopIteration with the model's output when the step is done."""
        return order.send(results)

    @torch.compiler.disable
    def _fail(self, order: Order, error: BaseException) -> None:
        """The program that was due has failed: the step ends, and says what there is to say; raises."""
        order.throw(error)

    # ---- what the user asks ------------------------------------------------------------------------------------------

    @property
    def method(self) -> Method:
        """The caching method. Another threshold, interval or list may be assigned between steps; nothing compiles anew."""
        return self.driver.rules.method

    @method.setter
    def method(self, method: Method) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"method: expected an rfc method such as rfc.RFC(tau=0.1), got {method!r}")
        new = on_programs_of(old := self.method, kept_like(old, method))
        if programs_of(new) != programs_of(old):
            raise RFCError(f"method: {new} needs other programs than {old}; call rfc_fx.transform again")
        for context in self.driver.generations:  # a generation is judged by the schedule it began with
            context.schedule = context.schedule or old.schedule
        self.driver.rules.method = new

    @abstractmethod
    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE."""

    def generation(
        self, timesteps: Tensor | Sequence[float] | None = None, *, source: Any = None
    ) -> contextlib.AbstractContextManager[Generation]:
        """Open a generation: `with model.generation() as g:`; calls inside, and `g(...)` from wherever, are its steps and nobody else's.

        It goes with threads and tasks that are started inside. What is known of the sampler lets schedules place their full steps, and
        nothing is read back from the device: `timesteps`, (S,), as the model will be called with them, with views of that tensor where it
        lies on a device; or `source`, a pipeline or a scheduler, which is read at the first call. Samples at timesteps of their own are
        seen on the host, and on a device in the first call; where they part later there, the last step raises RFCError. `g.stats`,
        `g.contexts`: its record.
        Leaving the block ends it, by an exception too.
        """
        if timesteps is not None and source is not None:
            raise ValueError("generation: pass timesteps or a source, not both: the source says the timesteps")
        known = None
        if timesteps is not None:
            known = Known()
            known.say(said(timesteps, "generation"), timesteps if isinstance(timesteps, Tensor) else None)
        elif source is not None:
            known = Known()
            known.follow(source, where="generation")
        self.driver.may_have_changed = True
        return self.driver.generations.opened(known)

    @property
    def stats(self) -> Record:
        """Record of the generation that is open here, else of the latest here: `nfc`, `phases`, `eps` of what ran last."""
        return self.driver.generations.recent().stats

    @property
    def contexts(self) -> dict[str, Record]:
        """The same for each of its contexts, by name; "cond (2)" is the second set of programs that ran as "cond"."""
        return self.driver.generations.recent().contexts

    def summary(self) -> Summary:
        """What that generation computed and skipped, and what all of them hold in memory; print it."""
        generations = self.driver.generations
        held = sum(tensor.nbytes for context in generations for tensor in context.tensors())
        latest = generations.recent().latest
        plan = self.plan() if latest is None else latest.compiled.plan
        return Summary(self.model_name, self.method, plan, self.contexts, held)

    def prepare(self, timesteps: Tensor | Sequence[float] | None) -> None:
        """Say which timesteps the coming generations will have, as the model will be called with them: (S,) in order, None for unknown.

        With `hoist=True` what depends on the timestep alone is then computed for all steps at once, when a generation begins.
        A step at another timestep computes its own; the results are the same up to the rounding of batched products.
        """
        prepared = None if timesteps is None else said(timesteps, "prepare")
        self.driver.generations.known.prepare(prepared)
        if prepared is not None:
            self.driver.warned.of_length(self.method.schedule, len(prepared))

    def follow(self, pipeline: Any) -> None:
        """Take the timesteps of every coming generation from this pipeline's scheduler (or from a scheduler), instead of `prepare`.

        What the pipeline makes of the scheduler's timesteps (FLUX divides by 1000, Z-Image counts from 0 to 1) is found in the first calls.
        The full steps of a method that places them are placed for each generation's own noise levels. Raises TypeError where there is no
        scheduler.
        """
        self.driver.generations.known.follow(pipeline)

    def reset(self) -> None:
        """End the generation of this thread or task, or the one that is open here: the next call begins with empty state."""
        generation = self.driver.generations.current()
        self.driver.ended(generation)
        generation.restart()
        self.driver.may_have_changed = True

    # ---- diffusers' conventions --------------------------------------------------------------------------------------

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Name the state set that calls inside use, e.g. "cond" and "uncond"; per thread and task, may be nested.

        Without a name, calls with different conditioning get a state set each (`rfc.conditioning`). `where` (step_index, sigma, ...)
        is what pipelines tell caches that count by it; here the timestep says it.
        """
        with self.driver.generations.named(name):
            yield

    def _reset_stateful_cache(self, *args: Any, **kwargs: Any) -> None:
        self.reset()
