"""Models that cannot be captured, and why."""

from __future__ import annotations

from torch import nn

from rfc_fx.capture.parallel import hooks_of_diffusers, is_context_parallel, refuse_spread
from rfc_fx.errors import CaptureError


def refuse(model: nn.Module) -> None:
    """Raise CaptureError for a model that something else has already changed in a way that a graph would lose or freeze."""
    refuse_spread(model)
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
        if hooks := [name for name, hook in hooks_of_diffusers(module) if not is_context_parallel(hook)]:
            raise CaptureError(
                f"{where}: has hooks of diffusers ({', '.join(hooks)}), which a graph would lose; "
                "call model.disable_cache() or load the model without them first; "
                "to offload, call pipe.enable_model_cpu_offload() with the transformed model in the pipeline"
            )


OF_GUIDERS = ("diffusers.hooks.layer_skip", "diffusers.hooks.smoothed_energy_guidance_utils")
"""Where the hooks are defined that a guider puts on a model for one call of a step: skipped layers, perturbed or blurred attention."""


def hooks_of_guiders(model: nn.Module) -> list[str]:
    """Names of the guiders' hooks on a model; none where other hooks of diffusers are on it, too."""
    hooks = {name: hook for module in model.modules() for name, hook in hooks_of_diffusers(module) if not is_context_parallel(hook)}
    return sorted(hooks) if all(type(hook).__module__ in OF_GUIDERS for hook in hooks.values()) else []
