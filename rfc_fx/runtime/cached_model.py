"""CachedModel: stands where the transformer stood, owns the state, and runs PREFIX, FULL and ESTIMATE."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

from torch import Tensor, inference_mode, nn

from rfc.bookkeeping import timestep_argument
from rfc.method import Method
from rfc.predictor import Predictor, PredictorError
from rfc.published import predicted_by
from rfc_fx.capture.export import named_arguments
from rfc_fx.capture.fingerprint import Fingerprint, fingerprint
from rfc_fx.capture.refusals import refuse
from rfc_fx.errors import PredictorMismatchError, RFCError
from rfc_fx.ir.config import Config
from rfc_fx.ir.plan import Plan
from rfc_fx.ir.program import Program
from rfc_fx.passes.build import CompiledSet, build
from rfc_fx.passes.guard import Guarded
from rfc_fx.runtime.context import Context
from rfc_fx.runtime.driver import StepModel
from rfc_fx.runtime.program_cache import MAX_SIGNATURES, Call, CallPattern, Key, ProgramCache, new_call, signature

log = logging.getLogger("rfc_fx")


class CachedModel(StepModel):
    """A diffusion transformer whose blocks are computed in full or estimated, step by step.

    Call it as the model; `config`, `dtype`, `device` and every other attribute are the model's. The model's weights are
    used in place, none is copied. Made by `rfc_fx.transform`.
    """

    def __init__(self, model: nn.Module, method: Method, config: Config) -> None:
        name, signature = type(model).__name__, inspect.signature(model.forward)
        super().__init__(name, signature, timestep_argument(model.forward), method, speculate=config.speculate)
        self.model = model
        self.__module__ = type(model).__module__  # with __class__: a saved pipeline names the model, and loads without this package
        self._options = config
        self._sets = ProgramCache()
        self._forms: list[CallPattern] = []
        self._made_from: Fingerprint = ()
        self.register_module("_predictor", None)  # a part of this module: its weights are listed and move with the others
        self._predictor: Predictor | None
        self._prepared: Context | None = None
        self._here_numbers: dict[str, Tensor] = {}
        self.eval()

    @property
    def options(self) -> Config:
        """How the model is transformed."""  # a pipeline reads `config` of the model itself
        return self._options

    def _forget_if_changed(self) -> bool:
        """Drop programs and state when the model is no longer what they were made from: adapters, types, places, modules."""
        self._may_have_changed = False
        now = fingerprint(self.model)
        changed = len(self._sets) > 0 and now != self._made_from
        if changed:
            log.warning("%s was changed since it was captured; it is captured anew", self._name)
            for held in (self._sets, self._contexts, self._streams, self._forms):
                held.clear()
            self._last = self._prepared = self._predictor = None
        self._made_from = now
        return changed

    # ---- programs and state ------------------------------------------------------------------------------------------

    def _recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with its programs; one that is written as an earlier one was, and differs in values alone, is recognised at once."""
        if self.model.training:
            raise RFCError(f"{self._name} is in training mode; call .eval() first: dropout is not part of a cached step")
        for form in self._forms:
            call = form.match(self._sets.get(form.key), args, kwargs)
            if call is not None and self._sets.holds(form.key, call.leaves):
                self._sets.use(form.key)
                return call
        arguments = named_arguments(self._signature, args, kwargs)
        compiled, key, leaves = self._lookup(arguments)
        call = new_call(key, compiled, leaves, arguments, self._timestep)
        if (new := CallPattern.of(call, arguments, self._timestep, args, kwargs)) is not None:
            self._forms = [new, *self._forms][:MAX_SIGNATURES]
        return call

    def _lookup(self, arguments: dict[str, Any]) -> tuple[CompiledSet, Key, list[Any]]:
        shape, leaves = signature(arguments, self.model)
        key = self._sets.find(shape, leaves)
        if key is None:
            self._forget_if_changed()
            refuse(self.model)
            if len(self._sets):
                log.warning("%s: new call signature, capturing programs number %d", self._name, len(self._sets) + 1)
            with inference_mode(False):
                compiled = build(self.model, arguments, self._method, self._options, self._timestep, self._loaded())
            key = self._sets.add(shape, leaves, compiled)
            dropped = self._sets.evict()
            self._forms = [form for form in self._forms if form.key not in dropped]
            self._contexts = {name: context for name, context in self._contexts.items() if name[1] not in dropped}
            self._streams = {name: streams for name, streams in self._streams.items() if name[0] not in dropped}
        return self._sets.use(key), key, leaves

    def _loaded(self) -> Predictor | None:
        """The predictor of a method that has one, loaded for the first programs; PredictorMismatchError where it is not the model's."""
        try:
            predicted = predicted_by(self._method)
            if predicted is not None and (self._predictor is None or not len(self._sets)):
                self._predictor = predicted.load(self.model)
        except PredictorError as error:
            raise PredictorMismatchError(str(error)) from error
        return self._predictor

    def trace(self, *args: Any, **kwargs: Any) -> Plan:
        """Capture for these arguments without running a step; return the plan."""
        return self._enter(args, kwargs)[0].compiled.plan

    # ---- what the user asks ------------------------------------------------------------------------------------------

    @property
    def guarded(self) -> Guarded:
        """The guarded graph of the latest signature; print `show.guarded_text(model.guarded)` or `.module.graph`."""
        return self._latest().guarded

    @property
    def programs(self) -> dict[str, Program]:
        """PREFIX (where data decides), FULL and ESTIMATE of the latest signature."""
        return self._latest().programs

    @property
    def compiled(self) -> CompiledSet:
        """All that was made for the latest signature."""
        return self._latest()

    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE, before the first run.

        `plan().alternatives["block"][torch.int8]` are the bytes that another granularity and `state_dtype` would take.

        Raises RFCError when nothing has been captured: pass `example_inputs` to `transform`, or call the model once.
        """
        return self._latest().whole_plan

    def _latest(self) -> CompiledSet:
        if (latest := self._sets.latest) is None:
            raise RFCError(f"{self._name}: nothing captured yet; pass example_inputs to rfc_fx.transform or call the model once")
        return latest

    # ---- diffusers' conventions --------------------------------------------------------------------------------------

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
        twin = type(self)(copy.deepcopy(self.model, memo), self._method, self._options)
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        raise RFCError(
            "a CachedModel holds programs and state and is not pickled; pickle the model and the method, and call rfc_fx.transform again"
        )
