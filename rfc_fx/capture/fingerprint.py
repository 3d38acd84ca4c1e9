"""Fingerprint of a model: what a captured graph treats as constant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rfc_fx.capture.parallel import hooks_of_diffusers

Fingerprint = tuple[Any, ...]


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return what a graph of the model has as constants: its modules, the types and places of its weights, adapters and their scales.

    Equal fingerprints mean that captured programs are still those of the model; weights may have changed their values.
    """
    return tuple(_parts(model))


def _parts(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield type(module)
        for parameter in module._parameters.values():
            yield None if parameter is None else (type(parameter), parameter.dtype, parameter.device)
        if hasattr(module, "active_adapters"):  # a layer of PEFT: scales and switches are numbers of its forward
            settings = ("active_adapters", "scaling", "merged_adapters", "disable_adapters")
            yield tuple(repr(getattr(module, name, None)) for name in settings)
        if module._forward_hooks or module._forward_pre_hooks:
            yield tuple(map(id, (*module._forward_hooks.values(), *module._forward_pre_hooks.values())))
        if "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module):
            yield hasattr(module, "_hf_hook"), tuple((name, id(hook)) for name, hook in hooks_of_diffusers(module))
