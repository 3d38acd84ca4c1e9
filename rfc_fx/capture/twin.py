"""Twin: a model's modules once more around the same weights. A capture puts fake weights into it, while other threads run the model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

OWN = ("_parameters", "_buffers", "_modules")
"""Dictionaries that a twin has for itself."""

DEPTH = 4
"""Of containers, functions and objects below an attribute."""


def twin_of(model: nn.Module) -> nn.Module:
    """A model of the same modules and weights; what is put in a weight's place there is not in the model.

    The model itself where an attribute leads back to one of its modules (a forward that was exchanged, a method that is kept): what is
    called through it would see the weights of the model.
    """
    modules = {id(module) for module in model.modules()}
    if any(_leads_to(modules, value, DEPTH) for module in model.modules() for name, value in vars(module).items() if name not in OWN):
        return model
    return _twin(model, {})


def _twin(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    if (twin := twins.get(id(module))) is None:
        twin = twins[id(module)] = object.__new__(type(module))
        attributes = vars(module) | {name: vars(module)[name].copy() for name in OWN}
        vars(twin).update(attributes)
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else _twin(child, twins)
    return twin


def _leads_to(modules: set[int], value: Any, depth: int) -> bool:
    """Whether one of the modules is reached from a value."""
    if isinstance(value, nn.Module):
        return id(value) in modules
    return depth > 0 and any(_leads_to(modules, each, depth - 1) for each in _below(value))


def _below(value: Any) -> Iterator[Any]:
    if isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                yield cell.cell_contents
        yield from (*(value.__defaults__ or ()), *vars(value).values())
    elif isinstance(value, Mapping):
        yield from list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from list(value)
    elif not isinstance(value, Tensor | type) and type(value).__module__ != "builtins":
        yield from list(getattr(value, "__dict__", {}).values())
