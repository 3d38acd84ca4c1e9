"""CachedModel: stands where the transformer stood, owns the state, and runs PREFIX, FULL and ESTIMATE."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc.generation import Direction, Generation, Phase, timestep_argument, timestep_value
from rfc.method import CachingMethod
from rfc.streams import Seen, Streams, conditioning, stream_name
from rfc_fx import show
from rfc_fx.capture import named_arguments
from rfc_fx.context import Context, Step, new_context
from rfc_fx.errors import RFCError
from rfc_fx.guard import Guarded
from rfc_fx.lower import Cond, unflatten
from rfc_fx.program import Compiled, Options, Plan, build, signature
from rfc_fx.specialize import CLOCK, Argument, Program
from rfc_fx.structure import Fingerprint, fingerprint, refuse

log = logging.getLogger("rfc_fx")

MAX_SIGNATURES = 8
"""Programs are kept for this many call signatures; the one used longest ago goes first, with its state."""


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
        self._compiled: OrderedDict[Any, Compiled] = OrderedDict()
        self._fixed: dict[Any, dict[int, Seen]] = {}
        self._numbering = count()
        self._contexts: OrderedDict[tuple[str, Any], Context] = OrderedDict()
        self._streams: dict[Any, Streams] = {}
        self._direction = Direction()
        self._here = threading.local()
        self._last: Context | None = None
        self._warned = False
        self._made_from: Fingerprint = ()
        self._may_have_changed = False
        self._prepared: Context | None = None
        self._here_numbers: dict[str, Tensor] = {}
        self._parameters_in_order = tuple(inspect.signature(model.forward).parameters)
        self._timestep = timestep_argument(model.forward)
        if self._timestep is None:
            log.warning("%s: no timestep argument found; call reset() before every generation", type(model).__name__)
        self.eval()

    # ---- the call ----------------------------------------------------------------------------------------------------

    @torch.compiler.disable(recursive=False)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the same call and the same result type as the model's.

        Only the programs are frames for torch.compile; the few lines between them are the host's.
        """
        with torch.no_grad():
            step = self._begin(args, kwargs)
            try:
                if (prefix := step.context.compiled.programs.get("PREFIX")) is not None:
                    self._share(step, prefix, prefix.run(*step.arguments(prefix)))
                program = self._decide(step)
                if program is None:  # the model was changed since its programs were made
                    return self.forward(*args, **kwargs)
                outputs = program.run(*step.arguments(program))
            except BaseException:
                step.context.end()  # the step counted, but some of its sites may not be refreshed
                raise
            return self._finish(step, outputs)

    @torch.compiler.disable
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        if self._may_have_changed:
            self._forget_if_changed()
        context, leaves = self._enter(args, kwargs)
        compiled = context.compiled
        values: dict[Argument, Tensor] = {
            ("input", name): t for name, t in zip(compiled.captured.names, compiled.inputs(leaves), strict=True)
        }
        values |= {("state", slot): tensor for slot, tensor in context.state.items()}
        step = Step(context, values)
        if context.fresh:
            context.begin()
        if "PREFIX" not in compiled.programs and compiled.timestep is not None:
            step.timestep = timestep_value(values["input", compiled.timestep])
        if self._restart_if_noise_grew(step) and self._forget_if_changed():
            step = self._begin(args, kwargs)
        self._set_clock(step)
        return step

    @torch.compiler.disable
    def _share(self, step: Step, prefix: Program, results: Any) -> None:
        step.decision = results[0]
        for name, tensor in zip(prefix.results[1:], results[1:], strict=True):
            step.values["carry", name.removeprefix("carry:")] = tensor

    @torch.compiler.disable
    def _decide(self, step: Step) -> Program | None:
        """The one decision of a step; PREFIX's error and the timestep come to the host in one transfer.

        None when a generation begins and the model is no longer what the programs were made from.
        """
        context = step.context
        eps: float | None = None
        if step.decision is not None:
            eps, *noise = step.decision.tolist()
            step.timestep = noise[0] if noise else None
            if self._restart_if_noise_grew(step):
                if self._forget_if_changed():
                    return None
                self._set_clock(step)
        schedule = self.options.method.schedule
        phase: Phase = context.generation.decide(schedule, self._numbers_on(torch.device("cpu")), eps, step.timestep)
        return context.compiled.programs[phase]

    @torch.compiler.disable
    def _finish(self, step: Step, outputs: Any) -> Any:
        return unflatten(outputs, step.context.compiled.captured.outputs)

    def _restart_if_noise_grew(self, step: Step) -> bool:
        context = step.context
        sign = self._direction.sign
        if not self._direction.ends(context.generation, step.timestep):
            if self._direction.sign != sign:
                way = "rises" if sign > 0 else "falls"
                log.warning("%s: the %s %s from noise to image in this sampler", type(self.model).__name__, self._timestep, way)
            return False
        self._warn_if_nothing_skipped(context)
        context.begin()
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
        changed = bool(self._compiled) and now != self._made_from
        if changed:
            log.warning("%s was changed since it was captured; it is captured anew", type(self.model).__name__)
            self._compiled.clear()
            self._fixed.clear()
            self._contexts.clear()
            self._streams.clear()
            self._last = self._prepared = None
        self._made_from = now
        return changed

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Context, list[Any]]:
        """The state set and the flat arguments of a call."""
        if self.model.training:
            raise RFCError(f"{type(self.model).__name__} is in training mode; call .eval() first: dropout is not part of a cached step")
        arguments = named_arguments(self.model.forward, args, kwargs)
        compiled, key, leaves = self._lookup(arguments)
        name = getattr(self._here, "name", None) or self._stream(key, compiled, arguments)
        return self._context(name, key, compiled), leaves

    # ---- programs and state ------------------------------------------------------------------------------------------

    def _lookup(self, arguments: dict[str, Any]) -> tuple[Compiled, Any, list[Any]]:
        shape, leaves = signature(arguments, self.model)
        key = self._variant(shape, leaves)
        if key is None:
            self._forget_if_changed()
            refuse(self.model)
            if self._compiled:
                log.warning("%s: new call signature, capturing programs number %d", type(self.model).__name__, len(self._compiled) + 1)
            with torch.inference_mode(False):
                compiled = build(self.model, arguments, self.options, self._timestep)
            key = (shape, next(self._numbering))
            self._compiled[key] = compiled
            self._fixed[key] = {position: Seen.now(leaves[position]) for position in compiled.captured.decided}
            while len(self._compiled) > MAX_SIGNATURES:
                self._drop(next(iter(self._compiled)))
        self._compiled.move_to_end(key)
        return self._compiled[key], key, leaves

    def _variant(self, shape: Any, leaves: list[Any]) -> Any:
        """The programs of a signature, or None: where a forward reads values, there is a set of programs for each set of values."""
        for key, fixed in self._fixed.items():
            if key[0] == shape and all(seen.equals(leaves[position]) for position, seen in fixed.items()):
                self._fixed[key] = {position: Seen.now(leaves[position]) for position in fixed}
                return key
        return None

    def _drop(self, key: Any) -> None:
        del self._compiled[key], self._fixed[key]
        for name in [name for name in self._contexts if name[1] == key]:
            del self._contexts[name]
        self._streams.pop(key, None)

    def _stream(self, key: Any, compiled: Compiled, arguments: dict[str, Any]) -> str:
        """Name of the context of a call outside `cache_context`: conditional and unconditional calls get one each."""
        timestep = arguments.get(self._timestep) if self._timestep is not None else None

        def over(place: int) -> bool:
            context = self._contexts.get((stream_name(place), key))
            return context is None or context.is_over(timestep_value(timestep), self._direction)

        latent = compiled.captured.latent
        streams = self._streams.setdefault(key, Streams())
        return stream_name(streams.find(conditioning(arguments, latent, self._timestep), over))

    def _context(self, name: str, key: Any, compiled: Compiled) -> Context:
        context = self._contexts.get((name, key))
        if context is None:
            context = self._contexts[name, key] = new_context(compiled)
        self._last = context
        return context

    def _numbers_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._numbers:
            with torch.inference_mode(False):
                self._numbers[device] = {name: t.to(device) for name, t in self.options.method.schedule.numbers().items()}
        return self._numbers[device]

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
        old, new = self.options.method, method
        same = (
            new.estimator == old.estimator
            and type(new.schedule) is type(old.schedule)
            and (new.schedule.forecaster == old.schedule.forecaster)
            and getattr(new.schedule, "over", None) == getattr(old.schedule, "over", None)
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

        Raises RFCError when nothing has been captured: pass `example_inputs` to `transform`, or call the model once.
        """
        return self._latest().plan

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
        if not self._compiled:
            raise RFCError(
                f"{type(self.model).__name__}: nothing captured yet; pass example_inputs to rfc_fx.transform or call the model once"
            )
        return next(reversed(self._compiled.values()))

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


class CondModel(CachedModel):
    """A cached model whose step is one graph, decision included: it can be inlined in a larger compiled function or exported.

    There the programs have to exist beforehand: pass `example_inputs` to `transform`, or call the model once.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step; see `CachedModel.forward`."""
        if not torch.compiler.is_compiling():
            self._prepare(args, kwargs)
        with torch.no_grad():
            context = self._prepared
            if context is None:
                raise RFCError("dispatch='cond': nothing captured yet; pass example_inputs to rfc_fx.transform or call the model once")
            compiled, state, numbers = context.compiled, context.state, self._here_numbers
            assert isinstance(compiled.lowered, Cond)
            given = dict(zip(self._parameters_in_order, args, strict=False)) | kwargs
            leaves = pytree.tree_leaves({name: given[name] for name in self._parameters_in_order if name in given})
            inputs = compiled.inputs(leaves)
            outputs = compiled.lowered.step(inputs, state, state["progress"], state["log"], numbers)
            return unflatten(outputs, compiled.captured.outputs)

    @torch.compiler.disable
    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have programs and state for this call ready; torch.compile calls it through the lazy-module protocol."""
        if self._may_have_changed:
            self._forget_if_changed()
        self._prepared, _ = self._enter(args, kwargs)
        self._here_numbers = self._numbers_on(self._prepared.compiled.device)

    def _initialize_hook(self, *_: Any) -> None:
        """Marks a module that has to see arguments before it is compiled (torch's lazy-module protocol)."""

    def _infer_parameters(self, _: nn.Module, args: Any, kwargs: Any = None) -> None:
        self._prepare(tuple(args), dict(kwargs or {}))
