"""Tiny diffusers transformers with random weights, one per family, with inputs to call them.

Each function returns (model in eval mode, keyword arguments of one call); every kind of block occurs at least twice.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Family = tuple[nn.Module, dict[str, Any]]


def dit(layers: int = 2, seed: int = 0) -> Family:
    """DiT: class-conditional, a batch of a conditional and an unconditional half."""
    from diffusers import DiTTransformer2DModel

    draw = _seeded(seed)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    kwargs = {"hidden_states": draw(2, 4, 8, 8), "timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([1, 10])}
    return ready(model), kwargs


def pixart(layers: int = 2, seed: int = 0) -> Family:
    """PixArt: cross-attention to a text with a mask."""
    from diffusers import PixArtTransformer2DModel

    draw = _seeded(seed)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=12,
        use_additional_conditions=False,
    )
    kwargs = {
        "hidden_states": draw(2, 4, 8, 8),
        "encoder_hidden_states": draw(2, 7, 12),
        "timestep": torch.tensor([500, 500]),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return ready(model), kwargs


def sd3(layers: int = 2, seed: int = 0) -> Family:
    """Stable Diffusion 3.5: joint attention, `layers` blocks with a second attention, then `layers` without (the last keeps no text)."""
    from diffusers import SD3Transformer2DModel

    draw = _seeded(seed)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2 * layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=tuple(range(layers)),
        qk_norm="rms_norm",
    )
    kwargs = {
        "hidden_states": draw(2, 4, 8, 8),
        "encoder_hidden_states": draw(2, 5, 12),
        "pooled_projections": draw(2, 10),
        "timestep": torch.tensor([500.0, 500.0]),
    }
    return ready(model), kwargs


def flux(layers: int = 2, seed: int = 0) -> Family:
    """FLUX: `layers` double-stream blocks, then `layers` single-stream blocks with attention and MLP in parallel."""
    from diffusers import FluxTransformer2DModel

    draw = _seeded(seed)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    places = torch.zeros(16, 3)
    places[:, 1], places[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    kwargs = {
        "hidden_states": draw(2, 16, 4),
        "encoder_hidden_states": draw(2, 5, 12),
        "pooled_projections": draw(2, 10),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": places,
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.tensor([3.5, 3.5]),
    }
    return ready(model), kwargs


def _wan(layers: int, **config: Any) -> nn.Module:
    from diffusers import WanTransformer3DModel

    fixed = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "out_channels": 4, "text_dim": 16}
    fixed |= {"freq_dim": 32, "ffn_dim": 32, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32}
    return ready(WanTransformer3DModel(num_layers=layers, **fixed, **config))


def wan(layers: int = 2, seed: int = 0) -> Family:
    """Wan: text to video, two frames."""
    draw = _seeded(seed)
    model = _wan(layers, in_channels=4)
    return model, {"hidden_states": draw(2, 4, 2, 8, 8), "timestep": torch.tensor([500, 500]), "encoder_hidden_states": draw(2, 5, 16)}


def wan_image(layers: int = 2, seed: int = 0) -> Family:
    """Wan: image to video; a feed-forward embeds the image before any block and never sees the latent."""
    draw = _seeded(seed)
    model = _wan(layers, in_channels=8, image_dim=10, added_kv_proj_dim=24)
    kwargs = {
        "hidden_states": draw(1, 8, 2, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": draw(1, 5, 16),
        "encoder_hidden_states_image": draw(1, 257, 10),
    }
    return model, kwargs


FAMILIES: dict[str, Callable[..., Family]] = {"dit": dit, "pixart": pixart, "sd3": sd3, "flux": flux, "wan": wan}


@cache
def shared_model(name: str, layers: int = 2) -> Family:
    """The model of that family which all tests share, so that it is captured once (`captured_once`): none may change it."""
    return FAMILIES[name](layers=layers)


def moved(kwargs: dict[str, Any], step: int, steps: int = 12) -> dict[str, Any]:
    """Return the call of step `step` of `steps`: the latent drifts along one direction, with a little noise, and the timestep falls."""
    latent, timestep = kwargs["hidden_states"], kwargs["timestep"]
    drift = torch.randn(latent.shape, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(step))
    left = timestep * (steps - step)
    return {
        **kwargs,
        "hidden_states": (latent + 0.05 * step * drift + 0.01 * noise).to(latent.dtype),
        "timestep": left / steps if timestep.is_floating_point() else left // steps,
    }


def sample(output: Any) -> Tensor:
    """The prediction in a model's output."""
    return output[0] if isinstance(output, tuple) else output.sample


def _seeded(seed: int) -> Callable[..., Tensor]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def ready(model: nn.Module) -> nn.Module:
    """Fill what starts at zero (gates, output head), or else every branch would vanish."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()
