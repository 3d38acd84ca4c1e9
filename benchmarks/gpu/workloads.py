"""Workloads of the GPU benchmark: published sizes with random weights made on the device, and a tiny twin of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.latency.workloads import WORKLOADS, Calls, Workload


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A workload at a batch size, its tiny twin, and what is timed beside the compiled variants."""

    workload: Workload
    tiny: Workload
    samples: int = 1
    beside: bool = False
    """Whether eager full computation, the eager twins and CUDA graphs are timed too."""


def built(workload: Workload, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model with random weights of that type, made on the device; buffers keep the type that the model gives them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return workload.model().to(device)
    finally:
        torch.set_default_dtype(before)


def calls_of(workload: Workload, model: nn.Module, samples: int, steps: int, device: torch.device, dtype: torch.dtype) -> Calls:
    """The calls of a generation on the device; floating-point arguments in the model's type, conditioning the same tensor in every step."""
    calls = workload.calls(model, samples, steps)
    distinct = {id(t): t for call in calls for t in call.values()}
    moved = {key: t.to(device, dtype if t.is_floating_point() else t.dtype) for key, t in distinct.items()}
    return [{name: moved[id(t)] for name, t in call.items()} for call in calls]


def _filled(model: nn.Module) -> nn.Module:
    """Gates and heads that start at zero get small values, or every output would be zero."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def tiny_dit(layers: int) -> Callable[[], nn.Module]:
    """DiT with so many blocks of 32, 16 tokens."""

    def build() -> nn.Module:
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(0)
        shape = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": layers, "sample_size": 8, "patch_size": 2}
        return _filled(DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **shape))

    return build


def _flux(double: int, single: int, heads: int, axes: tuple[int, int, int], text: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import FluxTransformer2DModel

        torch.manual_seed(0)
        shape = {"num_layers": double, "num_single_layers": single, "num_attention_heads": heads, "attention_head_dim": sum(axes)}
        return _filled(
            FluxTransformer2DModel(
                patch_size=1,
                in_channels=64,
                joint_attention_dim=text,
                pooled_projection_dim=768,
                guidance_embeds=True,
                axes_dims_rope=axes,
                **shape,
            )
        )

    return build


def _wan(layers: int, heads: int, head: int, ffn: int, text: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import WanTransformer3DModel

        torch.manual_seed(0)
        shape = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head, "ffn_dim": ffn, "text_dim": text}
        return _filled(WanTransformer3DModel(in_channels=16, out_channels=16, **shape))

    return build


def _drifting(shape: Sequence[int], steps: int) -> list[Tensor]:
    """The latent of every step: from noise along one direction."""
    draw = torch.Generator().manual_seed(0)
    start, drift = (torch.randn(*shape, generator=draw) for _ in range(2))
    return [start + step / steps * drift for step in range(steps)]


def _flux_calls(side: int, words: int) -> Callable[[Any, int, int], Calls]:
    """Packed latents of side x side tokens and a text; guidance is an input, not a second half of the batch."""

    def calls(model: Any, samples: int, steps: int) -> Calls:
        draw = torch.Generator().manual_seed(1)
        places = torch.zeros(side * side, 3)
        places[:, 1], places[:, 2] = torch.arange(side * side) // side, torch.arange(side * side) % side
        same = {
            "encoder_hidden_states": torch.randn(samples, words, model.config.joint_attention_dim, generator=draw),
            "pooled_projections": torch.randn(samples, model.config.pooled_projection_dim, generator=draw),
            "img_ids": places,
            "txt_ids": torch.zeros(words, 3),
            "guidance": torch.full((samples,), 3.5),
        }
        times = torch.linspace(1, 1 / steps, steps)
        latents = _drifting((samples, side * side, model.config.in_channels), steps)
        return [{"hidden_states": x, "timestep": t.expand(samples).contiguous(), **same} for x, t in zip(latents, times, strict=True)]

    return calls


def _wan_calls(frames: int, height: int, width: int, words: int) -> Callable[[Any, int, int], Calls]:
    """Latent frames and a text; guidance would be a second call."""

    def calls(model: Any, samples: int, steps: int) -> Calls:
        text = torch.randn(samples, words, model.config.text_dim, generator=torch.Generator().manual_seed(1))
        times = torch.linspace(980, 0, steps).long()
        latents = _drifting((samples, model.config.in_channels, frames, height, width), steps)
        return [
            {"hidden_states": x, "timestep": t.expand(samples).contiguous(), "encoder_hidden_states": text}
            for x, t in zip(latents, times, strict=True)
        ]

    return calls


TINY_DIT = Workload(name="dit", what="DiT, 2 blocks of 32, 16 tokens", model=tiny_dit(2), calls=WORKLOADS["dit-s"].calls)


TINY_FLUX = Workload(
    name="flux",
    what="FLUX, 1 double and 1 single block of 32, 16 + 5 tokens",
    model=_flux(1, 1, 2, (4, 4, 8), 32),
    calls=_flux_calls(4, 5),
)


TINY_WAN = Workload(name="wan", what="Wan, 1 block of 32, 32 tokens", model=_wan(1, 2, 16, 64, 32), calls=_wan_calls(2, 8, 8, 5))


SMALL = (TINY_DIT, TINY_FLUX, TINY_WAN)
"""What the checks run, on the CPU as on the GPU."""


FLUX = Workload(
    name="flux",
    what="FLUX.1-dev, 19 double and 38 single blocks of 3072, 4096 + 512 tokens",
    model=_flux(19, 38, 24, (16, 56, 56), 4096),
    calls=_flux_calls(64, 512),
)


WAN = Workload(
    name="wan",
    what="Wan 2.1 1.3B, 30 blocks of 1536, latent 16 x 9 x 60 x 104, 14040 tokens",
    model=_wan(30, 12, 128, 8960, 4096),
    calls=_wan_calls(9, 60, 104, 512),
)


LARGE = {
    "dit-xl-1": Timed(workload=WORKLOADS["dit-xl"], tiny=TINY_DIT, samples=1, beside=True),
    "flux": Timed(workload=FLUX, tiny=TINY_FLUX),
    "dit-xl-8": Timed(workload=WORKLOADS["dit-xl"], tiny=TINY_DIT, samples=8, beside=True),
    "wan": Timed(workload=WAN, tiny=TINY_WAN),
}
"""What is timed, in this order."""
