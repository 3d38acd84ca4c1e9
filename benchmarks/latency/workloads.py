"""Workloads: models at published configurations with random weights, and the calls of one generation. Times need no trained weights.

The thin ones have the blocks of the published model, fewer and narrower: a full step takes about a second on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rfc_fx.zoo import emoji, load_digits

Calls = list[dict[str, Tensor]]


TEXT_TOKENS = 64


FLUX_SIDE = 32
"""Patches a side: an image of 512 x 512 pixels."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and what a sampler hands it in every step."""

    name: str
    what: str
    guidance: str = "with guidance"
    """How samples are guided; "with guidance" doubles them, in one batch."""
    model: Callable[[], nn.Module]
    calls: Callable[[nn.Module, int, int], Calls]
    """(model, samples, steps) -> the arguments of every step: the latent drifts, the timestep falls."""


def dit(layers: int, heads: int, width: int, side: int = 32) -> Callable[[], nn.Module]:
    """DiT with so many blocks of that width on a latent of side x side, patch 2."""

    def build() -> nn.Module:
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(0)
        shape = {"num_attention_heads": heads, "attention_head_dim": width // heads, "num_layers": layers}
        return filled(DiTTransformer2DModel(in_channels=4, out_channels=8, sample_size=side, **shape))

    return build


def flux(double: int, single: int, heads: int, axes: tuple[int, int, int] = (16, 56, 56), text: int = 4096) -> Callable[[], nn.Module]:
    """FLUX with so many double and single blocks; `text`: width of the text's features."""

    def build() -> nn.Module:
        from diffusers import FluxTransformer2DModel

        torch.manual_seed(0)
        blocks = {"num_layers": double, "num_single_layers": single, "num_attention_heads": heads, "attention_head_dim": sum(axes)}
        return filled(FluxTransformer2DModel(guidance_embeds=True, axes_dims_rope=axes, joint_attention_dim=text, **blocks))

    return build


def _sd3(layers: int, dual: int, heads: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import SD3Transformer2DModel

        torch.manual_seed(0)
        model = SD3Transformer2DModel(
            sample_size=64,
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=64,
            caption_projection_dim=64 * heads,
            out_channels=16,
            dual_attention_layers=tuple(range(dual)),
            qk_norm="rms_norm",
        )
        return filled(model)

    return build


def _digits() -> nn.Module:
    model: nn.Module = load_digits()[0]
    return model


def _emoji() -> nn.Module:
    model: nn.Module = emoji().transformer
    return model


def filled(model: nn.Module) -> nn.Module:
    """The model in eval mode, with small values in gates and heads that start at zero: every output would be zero."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _class_calls(model: Any, samples: int, steps: int) -> Calls:
    side, channels, null = model.config.sample_size, model.config.in_channels, model.config.num_embeds_ada_norm
    labels = torch.arange(samples) % 10
    both = torch.cat([labels, torch.full_like(labels, null)])
    times = torch.linspace(980, 0, steps).long()
    return [
        {"hidden_states": torch.cat([at, at]), "timestep": t.expand(2 * samples).contiguous(), "class_labels": both}
        for at, t in zip(drifting(steps, samples, channels, side, side), times, strict=True)
    ]


def _sd3_calls(model: Any, samples: int, steps: int) -> Calls:
    """One batch of text and no text; timesteps are floats from 1000 down."""
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(2 * samples, TEXT_TOKENS, model.config.joint_attention_dim, generator=draw)
    pooled = torch.randn(2 * samples, model.config.pooled_projection_dim, generator=draw)
    side, channels = model.config.sample_size, model.config.in_channels
    times = 1000 * _falling(steps)
    return [
        {
            "hidden_states": torch.cat([at, at]),
            "encoder_hidden_states": text,
            "pooled_projections": pooled,
            "timestep": t.expand(2 * samples).contiguous(),
        }
        for at, t in zip(drifting(steps, samples, channels, side, side), times, strict=True)
    ]


def flux_calls(side: int, words: int) -> Callable[[Any, int, int], Calls]:
    """A square of side x side packed patches and a text; guidance is an argument where the model takes it, timesteps fall from 1."""

    def calls(model: Any, samples: int, steps: int) -> Calls:
        draw = torch.Generator().manual_seed(1)
        positions = torch.zeros(side**2, 3)
        positions[:, 1], positions[:, 2] = torch.arange(side**2) // side, torch.arange(side**2) % side
        same = {
            "encoder_hidden_states": torch.randn(samples, words, model.config.joint_attention_dim, generator=draw),
            "pooled_projections": torch.randn(samples, model.config.pooled_projection_dim, generator=draw),
            "img_ids": positions,
            "txt_ids": torch.zeros(words, 3),
        }
        if model.config.guidance_embeds:
            same["guidance"] = torch.full((samples,), 3.5)
        return [
            {"hidden_states": at, "timestep": t.expand(samples).contiguous(), **same}
            for at, t in zip(drifting(steps, samples, side**2, model.config.in_channels), _falling(steps), strict=True)
        ]

    return calls


def drifting(steps: int, *shape: int) -> list[Tensor]:
    """A latent that moves along a straight line."""
    draw = torch.Generator().manual_seed(0)
    start, drift = (torch.randn(*shape, generator=draw) for _ in range(2))
    return [start + step / steps * drift for step in range(steps)]


def _falling(steps: int) -> Tensor:
    """Timesteps of a flow from 1 to 1 / steps."""
    return torch.linspace(1, 1 / steps, steps)


def calls_of(workload: Workload, model: nn.Module, samples: int, steps: int, device: torch.device, dtype: torch.dtype) -> Calls:
    """The calls of a generation on the device; floating-point arguments in the model's type, conditioning the same tensor in every step."""
    calls = workload.calls(model, samples, steps)
    distinct = {id(t): t for call in calls for t in call.values()}
    on_device = {key: t.to(device, dtype if t.is_floating_point() else t.dtype) for key, t in distinct.items()}
    return [{name: on_device[id(t)] for name, t in call.items()} for call in calls]


def timesteps_of(calls: Calls) -> Tensor:
    """The timestep of every call, one of each batch."""
    return torch.stack([call["timestep"].flatten()[0] for call in calls])


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="digits", what="the shipped digits model, 8 blocks of 128, 64 tokens", model=_digits, calls=_class_calls),
        Workload(
            name="emoji",
            what="the shipped emoji model, 4 double and 8 single blocks of 192, 64 + 12 tokens",
            guidance="conditional pass alone",
            model=_emoji,
            calls=flux_calls(8, 12),
        ),
        Workload(name="dit-s", what="DiT-S/2, 12 blocks of 384, 256 tokens", model=dit(12, 6, 384), calls=_class_calls),
        Workload(name="dit-b", what="DiT-B/2, 12 blocks of 768, 256 tokens", model=dit(12, 12, 768), calls=_class_calls),
        Workload(name="dit-xl", what="DiT-XL/2, 28 blocks of 1152, 256 tokens", model=dit(28, 16, 1152), calls=_class_calls),
        Workload(
            name="flux-thin",
            what="FLUX.1 thinned to 4 double and 8 single blocks of 512, 1024 + 64 tokens",
            guidance="with guidance as an argument",
            model=flux(4, 8, 4),
            calls=flux_calls(FLUX_SIDE, TEXT_TOKENS),
        ),
        Workload(
            name="sd3-thin",
            what="Stable Diffusion 3.5 thinned to 8 blocks of 384 (4 of them with dual attention), 1024 + 64 tokens",
            model=_sd3(8, 4, 6),
            calls=_sd3_calls,
        ),
    )
}
"""By name; random weights but for the shipped models."""
