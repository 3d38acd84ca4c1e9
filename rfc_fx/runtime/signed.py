"""Signed: a method that shows the signature of the model that its own stands for; pipelines ask for it before they pass arguments."""

from __future__ import annotations

import inspect
import types
from typing import Any


def signed(instance: Any, method: Any, signature: inspect.Signature) -> Any:
    """The method `method(self, *args, **kwargs)` of an instance under another signature: the same code, so that what is known of it holds.

    Diffusers passes a transformer those conditionings alone that `inspect.signature(transformer.forward)` names.
    """
    twin = types.FunctionType(method.__code__, method.__globals__, method.__name__, method.__defaults__, method.__closure__)
    twin.__dict__.update(method.__dict__)
    twin.__doc__, twin.__qualname__, twin.__module__ = method.__doc__, method.__qualname__, method.__module__
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    twin.__signature__ = inspect.Signature([itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    return types.MethodType(twin, instance)
