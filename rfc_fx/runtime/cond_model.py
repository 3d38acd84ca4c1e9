"""CondModel: a cached model whose step is one graph, its decision a torch.cond."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from rfc_fx.errors import RFCError
from rfc_fx.ir.program import unflatten
from rfc_fx.passes.build import CompiledSet
from rfc_fx.passes.lower_cond import Cond
from rfc_fx.runtime.cached_model import CachedModel


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
            assert isinstance(compiled, CompiledSet)
            assert isinstance(compiled.lowered, Cond)
            names = tuple(self._signature.parameters)
            given = dict(zip(names, args, strict=False)) | kwargs
            leaves = pytree.tree_leaves({name: given[name] for name in names if name in given})
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
