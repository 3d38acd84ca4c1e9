"""Workloads: models at published configurations with random weights, and the calls of one generation. Times need no trained weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rfc_fx.zoo import load_digits

Calls = list[dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and what a sampler hands it in every step; guidance doubles the samples, in one batch."""

    name: str
    what: str
    model: Callable[[], nn.Module]
    calls: Callable[[nn.Module, int, int], Calls]
    """(model, samples, steps) -> the arguments of every step: the latent drifts, the timestep falls."""


def _dit(layers: int, heads: int, width: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(0)
        model = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=width // heads, num_layers=layers, in_channels=4, out_channels=8, sample_size=32
        )
        return _filled(model)

    return build


def _digits() -> nn.Module:
    model: nn.Module = load_digits()[0]
    return model


def _filled(model: nn.Module) -> nn.Module:
    """Gates and heads that start at zero get small values, or every output would be zero."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _class_calls(model: Any, samples: int, steps: int) -> Calls:
    side, channels, null = model.config.sample_size, model.config.in_channels, model.config.num_embeds_ada_norm
    draw = torch.Generator().manual_seed(0)
    start, drift = (torch.randn(samples, channels, side, side, generator=draw) for _ in range(2))
    labels = torch.arange(samples) % 10
    both = torch.cat([labels, torch.full_like(labels, null)])
    times = torch.linspace(980, 0, steps).long()
    x = [start + step / steps * drift for step in range(steps)]
    return [
        {"hidden_states": torch.cat([at, at]), "timestep": t.expand(2 * samples).contiguous(), "class_labels": both}
        for at, t in zip(x, times, strict=True)
    ]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="digits", what="the shipped digits model, 8 blocks of 128, 64 tokens", model=_digits, calls=_class_calls),
        Workload(name="dit-s", what="DiT-S/2, 12 blocks of 384, 256 tokens", model=_dit(12, 6, 384), calls=_class_calls),
        Workload(name="dit-b", what="DiT-B/2, 12 blocks of 768, 256 tokens", model=_dit(12, 12, 768), calls=_class_calls),
        Workload(name="dit-xl", what="DiT-XL/2, 28 blocks of 1152, 256 tokens", model=_dit(28, 16, 1152), calls=_class_calls),
    )
}
"""By name; random weights but for the digits model."""
