"""Structure: what a captured graph takes for granted about its model, and what stands in the way of capturing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rfc_fx.errors import CaptureError

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
            yield None if parameter is None else (parameter.dtype, parameter.device)
        if hasattr(module, "active_adapters"):  # a layer of PEFT: scales and switches are numbers of its forward
            settings = ("active_adapters", "scaling", "merged_adapters", "disable_adapters")
            yield tuple(repr(getattr(module, name, None)) for name in settings)
        if module._forward_hooks or module._forward_pre_hooks:
            yield tuple(map(id, (*module._forward_hooks.values(), *module._forward_pre_hooks.values())))
        if "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module):
            yield hasattr(module, "_hf_hook"), tuple(_hooks_of_diffusers(module))


def refuse(model: nn.Module) -> None:
    """Raise CaptureError for a model that something else has already changed in a way that a graph would lose or freeze."""
    for name, module in model.named_modules():
        where = f"{type(model).__name__}{f'.{name}' if name else ''}"
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise CaptureError(f"{where}: compiled already; transform first, compile after: torch.compile(rfc_fx.transform(model))")
        if hasattr(module, "_hf_hook"):
            raise CaptureError(
                f"{where}: has an offloading hook of accelerate, which a graph would lose; "
                "transform first, put the result into the pipeline, then call pipe.enable_model_cpu_offload(); "
                "offloading that moves single layers (sequential) has no place in a graph at all"
            )
        if hooks := _hooks_of_diffusers(module):
            raise CaptureError(
                f"{where}: has hooks of diffusers ({', '.join(hooks)}), which a graph would lose; "
                "call model.disable_cache() or load the model without them first; "
                "to offload, call pipe.enable_model_cpu_offload() with the transformed model in the pipeline"
            )


def _hooks_of_diffusers(module: nn.Module) -> list[str]:
    return list(getattr(getattr(module, "_diffusers_hook", None), "hooks", {}))
