"""StepModel: the module that stands where a transformer stood; its face to pipelines, over a driver."""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rfc.generation import Generation
from rfc.method import Method, programs_of
from rfc.storage import kept_like
from rfc_fx.errors import RFCError
from rfc_fx.ir.plan import Plan
from rfc_fx.runtime.contexts import Contexts
from rfc_fx.runtime.driver import Driver, Run
from rfc_fx.runtime.dynamo import skip_own_frame
from rfc_fx.runtime.program_cache import ProgramSource
from rfc_fx.runtime.sampler import Following
from rfc_fx.runtime.summary import Summary

log = logging.getLogger("rfc_fx")


class Step:
    """A step under way: the program that is due, or the output."""

    __slots__ = ("_order", "arguments", "output", "run")

    def __init__(self, order: Generator[Run, Any, Any]) -> None:
        self._order = order
        self.run: Callable[..., Any] | None = None
        self.arguments: list[Tensor] = []
        self.output: Any = None
        self.send(None)

    def send(self, results: Any) -> None:
        """Take what the program returned, and turn to the next; `run` is None when the step is done."""
        try:
            self.run, self.arguments = self._order.send(results)
        except StopIteration as done:
            self.run, self.output = None, done.value

    def stop(self) -> None:
        """The program that was due has failed."""
        self._order.close()


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
        contexts: Contexts,
        *,
        speculate: bool | None = None,
    ) -> None:
        super().__init__()
        self.model_name, self.call_signature, self.timestep_argument = name, signature, timestep
        self.driver = Driver(name, method, programs, contexts, speculate)
        if timestep is None:
            log.warning("%s: no timestep argument found; call reset() before every generation", name)

    # ---- the call ----------------------------------------------------------------------------------------------------

    @skip_own_frame
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's.

        Only the programs are frames for torch.compile; the few lines between them are the host's.
        """
        with torch.no_grad() if torch.is_grad_enabled() else _NOTHING:
            step = self._start(args, kwargs)
            try:
                while step.run is not None:
                    self._resume(step, step.run(*step.arguments))
            except BaseException:
                step.stop()
                raise
            return step.output

    @torch.compiler.disable
    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        return Step(self.driver.step(args, kwargs))

    @torch.compiler.disable
    def _resume(self, step: Step, results: Any) -> None:
        step.send(results)

    # ---- what the user asks ------------------------------------------------------------------------------------------

    @property
    def method(self) -> Method:
        """The caching method. Another threshold, interval or list may be assigned between steps; nothing compiles anew."""
        return self.driver.method

    @method.setter
    def method(self, method: Method) -> None:
        old = self.method
        new = kept_like(old, method)
        if programs_of(new) != programs_of(old):
            raise RFCError(f"method: {new} needs other programs than {old}; call rfc_fx.transform again")
        for context in self.driver.contexts:  # a generation is judged by the schedule it began with
            context.schedule = context.schedule or old.schedule
        self.driver.method = new

    @abstractmethod
    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE."""

    @property
    def stats(self) -> Generation:
        """Record of the current generation (of the context that ran last): `nfc`, `phases`, `eps`."""
        latest = self.driver.contexts.latest
        return Generation() if latest is None else Generation(latest.record())

    @property
    def contexts(self) -> dict[str, Generation]:
        """Records of the current generations by context name; "cond (2)" is the second set of programs that ran as "cond"."""
        return {name: Generation(book) for name, book in self.driver.contexts.records().items()}

    def summary(self) -> Summary:
        """What was computed, what was skipped and what it held in memory; print it."""
        contexts = self.driver.contexts
        held = sum(tensor.nbytes for context in contexts for tensor in context.tensors())
        plan = self.plan() if contexts.latest is None else contexts.latest.compiled.plan
        return Summary(self.model_name, self.method, plan, self.contexts, held)

    def prepare(self, timesteps: Tensor | Sequence[float] | None) -> None:
        """Say which timesteps the coming generations will have, as the model will be called with them: (S,) in order, None for unknown.

        With `hoist=True` what depends on the timestep alone is then computed for all steps at once, when a generation begins.
        A step at another timestep computes its own; the results are the same up to the rounding of batched products.
        """
        self.driver.hoisting.following = None
        if timesteps is None:
            self.driver.hoisting.timesteps = None
            return
        with torch.inference_mode(False):
            prepared = torch.as_tensor(timesteps).detach().clone()
        if prepared.dim() != 1 or not prepared.numel():
            raise ValueError(f"prepare: timesteps must have shape (S,) with S at least 1, got {tuple(prepared.shape)}")
        self.driver.hoisting.timesteps = prepared
        self.driver.warned.of_length(self.method.schedule, len(prepared))

    def follow(self, pipeline: Any) -> None:
        """Take the timesteps of every coming generation from this pipeline's scheduler (or from a scheduler), instead of `prepare`.

        The first three steps of a generation compute their own modulation, and tell what the pipeline makes of the scheduler's timesteps
        (FLUX divides by 1000, Z-Image counts from 0 to 1); the other steps read a table. Raises TypeError where there is no scheduler.
        """
        self.driver.hoisting.following = Following(pipeline)

    def reset(self) -> None:
        """End the generation of every context: the next call begins with empty state."""
        for context in self.driver.contexts:
            self.driver.warned.at_the_end(context.record(), context.schedule or self.method.schedule)
        self.driver.contexts.reset()
        self.driver.may_have_changed = True

    # ---- diffusers' conventions --------------------------------------------------------------------------------------

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Name the state set that calls inside use, e.g. "cond" and "uncond"; per thread and task, may be nested.

        Without a name, calls with different conditioning get a state set each (`rfc.conditioning`). `where` (step_index, sigma, ...)
        is what pipelines tell caches that count by it; here the timestep says it.
        """
        with self.driver.contexts.named(name):
            yield

    def _reset_stateful_cache(self, *args: Any, **kwargs: Any) -> None:
        self.reset()


_NOTHING = nullcontext()
