"""Workloads of the GPU benchmark: published sizes with random weights made on the device, and a tiny twin of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.latency.workloads import WORKLOADS, Calls, Workload, dit, drifting, filled, flux, flux_calls


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A workload at a batch size, and its tiny twin."""

    workload: Workload
    tiny: Workload
    samples: int = 1


KINDS = ("DiTTransformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel", "WanTransformer3DModel")


def built(workload: Workload, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model with random weights of that type, made on the device; buffers keep the type that the model gives them."""
    import diffusers

    for kind in KINDS:  # what libraries make when they are imported is not made on the device
        getattr(diffusers, kind)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return workload.model().to(device)
    finally:
        torch.set_default_dtype(before)


def _wan(layers: int, heads: int, head: int, ffn: int, text: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import WanTransformer3DModel

        torch.manual_seed(0)
        shape = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head, "ffn_dim": ffn, "text_dim": text}
        return filled(WanTransformer3DModel(in_channels=16, out_channels=16, **shape))

    return build


def _wan_calls(frames: int, height: int, width: int, words: int) -> Callable[[Any, int, int], Calls]:
    """Latent frames and a text; guidance would be a second call."""

    def calls(model: Any, samples: int, steps: int) -> Calls:
        text = torch.randn(samples, words, model.config.text_dim, generator=torch.Generator().manual_seed(1))
        times = torch.linspace(980, 0, steps).long()
        latents = drifting(steps, samples, model.config.in_channels, frames, height, width)
        return [
            {"hidden_states": x, "timestep": t.expand(samples).contiguous(), "encoder_hidden_states": text}
            for x, t in zip(latents, times, strict=True)
        ]

    return calls


TINY_DIT = Workload(name="dit", what="DiT, 2 blocks of 32, 16 tokens", model=dit(2, 2, 32, side=8), calls=WORKLOADS["dit-s"].calls)


TINY_FLUX = Workload(
    name="flux",
    what="FLUX, 1 double and 1 single block of 32, 16 + 5 tokens",
    model=flux(1, 1, 2, (4, 4, 8), 32),
    calls=flux_calls(4, 5),
)


TINY_WAN = Workload(name="wan", what="Wan, 1 block of 32, 32 tokens", model=_wan(1, 2, 16, 64, 32), calls=_wan_calls(2, 8, 8, 5))


FLUX = Workload(
    name="flux",
    what="FLUX.1-dev, 19 double and 38 single blocks of 3072, 4096 + 512 tokens",
    model=flux(19, 38, 24, (16, 56, 56), 4096),
    calls=flux_calls(64, 512),
)


WAN = Workload(
    name="wan",
    what="Wan 2.1 1.3B, 30 blocks of 1536, latent 16 x 9 x 60 x 104, 14040 tokens",
    model=_wan(30, 12, 128, 8960, 4096),
    calls=_wan_calls(9, 60, 104, 512),
)


LARGE = {
    "dit-xl-1": Timed(workload=WORKLOADS["dit-xl"], tiny=TINY_DIT, samples=1),
    "flux": Timed(workload=FLUX, tiny=TINY_FLUX),
    "dit-xl-8": Timed(workload=WORKLOADS["dit-xl"], tiny=TINY_DIT, samples=8),
    "wan": Timed(workload=WAN, tiny=TINY_WAN),
    "rivals": Timed(workload=WORKLOADS["dit-xl"], tiny=TINY_DIT, samples=1),
}
"""What is timed, by the name of its section."""
