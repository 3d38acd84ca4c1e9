"""CachedModel: stands where the transformer stood; the model's own programs behind the face of a StepModel."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rfc.arguments import timestep_argument
from rfc.method import Method
from rfc.predictor import Predictor, PredictorError
from rfc.published import predicted_by
from rfc_fx.errors import PredictorMismatchError, RFCError
from rfc_fx.ir.config import Config
from rfc_fx.ir.plan import Plan
from rfc_fx.ir.program import BuiltSet, Program
from rfc_fx.runtime.calls import Key
from rfc_fx.runtime.cuda_graphs import are_recorded, asks_for_graphs
from rfc_fx.runtime.generations import Generations
from rfc_fx.runtime.program_cache import ProgramCache
from rfc_fx.runtime.ranks import after_capture, before_capture, ranks_of
from rfc_fx.runtime.step_model import StepModel

Build = Callable[[nn.Module, Mapping[str, Any], Method, Config, str | None, Predictor | None, Any], BuiltSet]
"""Makes the programs for one call: (model, arguments by name, method, configuration, name of the timestep, predictor, group)."""


class CachedModel(StepModel):
    """A diffusion transformer whose blocks are computed in full or estimated, step by step.

    Call it as the model; `config`, `dtype`, `device` and every other attribute are the model's. The model's weights are
    used in place, none is copied. Made by `rfc_fx.transform`.
    """

    def __init__(self, model: nn.Module, method: Method, config: Config, build: Build, group: Any = None) -> None:
        name, signature, timestep = type(model).__name__, inspect.signature(model.forward), timestep_argument(model.forward)
        generations = Generations(name)
        cache = ProgramCache(model, signature, timestep, self._make, self._forget, self._weights_moved, generations.in_use)
        super().__init__(name, signature, timestep, method, cache, generations, speculate=config.speculate)
        self.model = model
        self.__module__ = type(model).__module__  # with __class__: a saved pipeline names the model, and loads without this package
        self.cache = cache
        self._options, self._build, self._group = config, build, group
        self.register_module("_predictor", None)  # a part of this module: its weights are listed and move with the others
        self._predictor: Predictor | None
        self.eval()

    @property
    def options(self) -> Config:
        """How the model is transformed."""  # a pipeline reads `config` of the model itself
        return self._options

    def _make(self, arguments: Mapping[str, Any]) -> BuiltSet:
        self.driver.ranks = ranks_of(self.model, self._group)
        before_capture(self.driver.ranks, self.model, arguments, self.method, self._options)
        made = self._build(self.model, arguments, self.method, self._options, self.timestep_argument, self._loaded(), self._group)
        after_capture(self.driver.ranks, made.digest)
        return made

    def _weights_moved(self, device: torch.device) -> None:
        """Weights lie elsewhere on a device than before: every CUDA graph that was recorded for them is recorded again."""
        if asks_for_graphs(self.compile_settings or {}) or are_recorded(device):
            self.driver.warned.of_moved_weights()

    def _loaded(self) -> Predictor | None:
        """The predictor of a method that has one, loaded for the first programs; PredictorMismatchError where it is not the model's."""
        try:
            predicted = predicted_by(self.method)
            if predicted is not None and (self._predictor is None or not len(self.cache)):
                self._predictor = predicted.load(self.model)
        except PredictorError as error:
            raise PredictorMismatchError(str(error)) from error
        return self._predictor

    def _forget(self, keys: Collection[Key]) -> None:
        """Programs are gone: so is their state."""
        self.driver.generations.drop(keys, are_evicted=len(self.cache) > 0)
        if self._compiled is not None:
            self._compiled.clear()
        if not len(self.cache):
            self._predictor = None

    def trace(self, *args: Any, **kwargs: Any) -> Plan:
        """Capture for these arguments without running a step; return the plan."""
        return self.cache.recognise(args, kwargs).compiled.plan

    # ---- what the user asks ------------------------------------------------------------------------------------------

    @property
    def compiled(self) -> Any:
        """All that was made for the latest signature (`rfc_fx.passes.build.CompiledSet`)."""
        return self.cache.latest

    @property
    def guarded(self) -> Any:
        """The guarded graph of the latest signature; print `guarded_text(model.guarded)` (`rfc_fx.report.text`) or `.module.graph`."""
        return self.cache.latest.guarded

    @property
    def programs(self) -> Mapping[str, Program]:
        """PREFIX (where data decides), FULL and ESTIMATE of the latest signature."""
        return self.cache.latest.programs

    def plan(self) -> Plan:
        """Sites, state tensors with bytes, and the FLOPs share of ESTIMATE, before the first run.

        `plan().alternatives["block"][torch.int8]` are the bytes that another granularity and `state_dtype` would take.

        Raises RFCError when nothing has been captured: pass `example_inputs` to `transform`, or call the model once.
        """
        return self.cache.latest.whole_plan

    # ---- diffusers' conventions --------------------------------------------------------------------------------------

    @property  # type: ignore[misc]  # nobody assigns another class to it
    def __class__(self) -> Any:
        """The model's class: pipelines ask for it before they load, scale, fuse, disable, unload or save what a model holds."""
        model = self.__dict__.get("_modules", {}).get("model")
        return type(self) if model is None else type(model)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """All modules, lists of blocks under the model's own names for them too: guiders of diffusers look for them there."""
        is_first = memo is None or self not in memo
        yield from super().named_modules(memo, prefix, remove_duplicate)
        if remove_duplicate and is_first:
            lists = [(name, module) for name, module in self.model.named_modules() if isinstance(module, nn.ModuleList)]
            yield from ((f"{prefix}.{name}" if prefix else name, module) for name, module in lists)

    def _get_name(self) -> str:
        return next(kind.__name__ for kind in type(self).__mro__ if kind.__module__.startswith("rfc_fx."))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedModel:
        """A copy of the model with the same options, its own weights and no state."""
        twin = type(self)(copy.deepcopy(self.model, memo), self.method, self._options, self._build, self._group)
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        raise RFCError(
            "a CachedModel holds programs and state and is not pickled; pickle the model and the method, and call rfc_fx.transform again"
        )
