"""Fingerprint of a model: what a captured graph treats as constant."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch import nn

from rfc_fx.capture.parallel import hooks_of_diffusers

Fingerprint = tuple[Any, ...]

SETTINGS = (bool, int, float, str, Enum, torch.dtype)
"""Kinds of attributes that are constants of a graph, alone or in tuples."""


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return what a graph of the model has as constants: its modules, the types and places of its weights, adapters and their scales.

    Equal fingerprints mean that captured programs are still those of the model; weights may have changed their values.
    """
    return tuple(_parts(model))


def _parts(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield type(module)
        for parameter in module._parameters.values():
            yield None if parameter is None else _of_weight(parameter)
        if hasattr(module, "active_adapters"):  # a layer of PEFT: scales and switches are numbers of its forward
            settings = ("active_adapters", "scaling", "merged_adapters", "disable_adapters")
            yield tuple(repr(getattr(module, name, None)) for name in settings)
        if module._forward_hooks or module._forward_pre_hooks:
            yield tuple(map(id, (*module._forward_hooks.values(), *module._forward_pre_hooks.values())))
        if "_hf_hook" in vars(module) or ("_diffusers_hook" in vars(module) and hooks_of_diffusers(module)):
            yield hasattr(module, "_hf_hook"), tuple((name, id(hook)) for name, hook in hooks_of_diffusers(module))


def _of_weight(weight: nn.Parameter) -> Fingerprint:
    """With what a weight of a class of its own says of its bytes, as a GGUF weight's type does: numbers of the forward."""
    told = () if type(weight) is nn.Parameter else ((name, value) for name, value in vars(weight).items() if _is_setting(value))
    return type(weight), weight.dtype, weight.device, weight.shape, *told


def _is_setting(value: Any) -> bool:
    return all(map(_is_setting, value)) if isinstance(value, tuple) else isinstance(value, SETTINGS)
