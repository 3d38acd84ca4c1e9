"""Weights that are tensor subclasses (torchao's quantised ones): torch.export takes their parts, which programs read through the weight."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rfc_fx.errors import CaptureError

MARK = "parametrizations."
"""In the path that torch.export gives a part: module.parametrizations.weight.original0."""


def path_of(model: nn.Module, target: str) -> str:
    """Where the model holds what torch.export calls `target`: module.weight.qdata for a part of a weight, else `target`.

    Raises CaptureError for a weight whose parts cannot be told.
    """
    module_path, mark, rest = target.partition(MARK)
    if not mark or hasattr(owner := model.get_submodule(module_path.removesuffix(".")), MARK.removesuffix(".")):
        return target
    name, _, number = rest.rpartition(".original")
    weight = getattr(owner, name, None)
    if not number.isdigit() or not is_traceable_wrapper_subclass(weight):
        raise CaptureError(
            f"{type(model).__name__}: {module_path}{name} is a {type(weight).__name__}, whose parts torch.export names {target}, which the "
            "model does not hold; quantise with weights that define __tensor_flatten__, as torchao's do, or transform the model before"
        )
    return f"{module_path}{_parts(name, weight)[int(number)]}"


def _parts(name: str, weight: Any) -> list[str]:
    """Paths of the plain tensors of a subclass in the order of torch.export: those of an object before those inside its parts."""
    found: list[str] = []
    left: list[tuple[str, Any]] = [(name, weight)]
    while left:
        path, held = left.pop()
        for part in held.__tensor_flatten__()[0]:
            value = getattr(held, part)
            if is_traceable_wrapper_subclass(value):
                left.append((f"{path}.{part}", value))
            else:
                found.append(f"{path}.{part}")
    return found
