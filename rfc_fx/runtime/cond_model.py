"""CondModel: a cached model whose step is one graph, its decision a torch.cond."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc_fx.errors import RFCError
from rfc_fx.ir.program import BuiltSet
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.context import CondContext, Context
from rfc_fx.runtime.generation import Generation

Prepared = tuple[Callable[..., Any] | None, Generation | None, Context | None, Mapping[str, Tensor]]
"""For one call: the plain model where that takes it, else its generation, context and the schedule's numbers."""


class CondModel(CachedModel):
    """A cached model whose step is one graph, decision included: it can be inlined in a larger compiled function or exported.

    There the programs have to exist beforehand: pass `example_inputs` to `transform`, or call the model once.
    """

    _prepared: Context | None = None
    """The context of the call that comes."""
    _thresholds: Mapping[str, Tensor] = {}
    """The schedule's numbers for it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cache.lifts = False  # a compiled call hands its arguments to the graph as they are

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step; see `CachedModel.forward`."""
        generation: Generation | None = None
        if torch.compiler.is_compiling():
            context, thresholds = self._prepared, self._thresholds
        else:  # what was prepared for this call, whatever other threads prepare meanwhile
            plain, generation, context, thresholds = self._prepare(args, kwargs)
            if plain is not None:
                return plain(*args, **kwargs)
        with torch.no_grad():
            if context is None:
                way = "pass example_inputs to rfc_fx.transform or call the model once"
                raise RFCError(f"{self.model_name}: dispatch='cond': nothing captured yet; {way}")
            compiled: BuiltSet = context.compiled  # type: ignore[assignment]
            assert compiled.step is not None
            state = context.state
            names = tuple(self.call_signature.parameters)
            arguments = dict(zip(names, args, strict=False)) | kwargs
            leaves = pytree.tree_leaves({name: arguments[name] for name in names if name in arguments})
            try:
                outputs = compiled.step(compiled.inputs(leaves), state, state["progress"], state["log"], thresholds)
            except BaseException:
                if generation is not None:
                    generation.failed(context)
                raise
            if generation is not None:
                generation.note(context.at, outputs)
            return pytree.tree_unflatten(list(outputs), compiled.outputs)

    @torch.compiler.disable
    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_noted: bool = True) -> Prepared:
        """Have programs and state for this call ready; torch.compile calls it through the lazy-module protocol, and hands on no results."""
        if (plain := self.driver.look_at_the_model()) is not None:
            return plain, None, None, {}
        generation, context = self.driver.generations.of(self.cache.recognise(args, kwargs), is_noted=is_noted)
        assert isinstance(context, CondContext)
        thresholds = context.numbers_of(self.driver.rules.of(generation, context))
        self._prepared, self._thresholds = context, thresholds
        context.has_ended = False  # from this call on
        return None, generation, context, thresholds

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the call, which is one graph, in place. On a CUDA device each call begins a step, and its results are the caller's."""
        nn.Module.compile(self, *args, **kwargs)
        call = self._compiled_call_impl
        assert call is not None

        def owned(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return call(*args, **kwargs)
            if self._prepared is not None and self._prepared.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            return pytree.tree_map_only(Tensor, lambda result: result.clone() if result.is_cuda else result, call(*args, **kwargs))

        self._compiled_call_impl = owned

    def _initialize_hook(self, *_: Any) -> None:
        """Marks a module that has to see arguments before it is compiled (torch's lazy-module protocol)."""

    def _infer_parameters(self, _: nn.Module, args: Any, kwargs: Any = None) -> None:
        self._prepare(tuple(args), dict(kwargs or {}), is_noted=False)
