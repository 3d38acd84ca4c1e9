"""Real diffusers pipelines around tiny transformers with random weights, one function per pipeline.

Each function returns (pipeline, prompt): `prompt(seed, samples)` gives the keyword arguments of one call, embeddings included,
so that no text encoder is needed. The transformers are those of `benchmarks.coverage.classes`, changed where a pipeline insists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.coverage.specs import all_specs

Prompt = Callable[..., dict[str, Any]]
Tiny = tuple[Any, Prompt]

SIZE = {"height": 16, "width": 16}
"""Pixels: the VAEs halve the side once, so that latents are 8 by 8."""
VIDEO = {**SIZE, "num_frames": 5}
FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def dit() -> Tiny:
    """Both halves of guidance in one batch; the class of "nothing" is 1000."""
    transformer = _transformer("DiTTransformer2DModel", 2, num_embeds_ada_norm=1000)
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=_vae(4), scheduler=diffusers.DDIMScheduler(clip_sample=False))
    return pipe, lambda seed=0, samples=1: {"class_labels": [seed + 1 + i for i in range(samples)]}


def pixart_sigma() -> Tiny:
    """One batch; a text with a mask, which another prompt fills otherwise."""
    transformer = _transformer("PixArtTransformer2DModel", 2)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.PixArtSigmaPipeline(**_texts(1), transformer=transformer, vae=_vae(4), scheduler=scheduler)
    fixed = {**SIZE, "negative_prompt": None, "use_resolution_binning": False}
    return pipe, lambda seed=0, samples=1: {**fixed, **_embeds(seed, samples, (7, 12), mask="prompt_attention_mask")}


def sd3(kind: str = "StableDiffusion3Pipeline") -> Tiny:
    """One batch; blocks can be left out for some steps."""
    transformer = _transformer("SD3Transformer2DModel")
    pipe = getattr(diffusers, kind)(**_texts(3), transformer=transformer, vae=_vae(4), scheduler=FLOW(shift=3.0))
    return pipe, lambda seed=0, samples=1: {**SIZE, **_embeds(seed, samples, (5, 12), pooled=10)}


def flux(kind: str = "FluxPipeline") -> Tiny:
    """Separate calls in contexts "cond" and "uncond"."""
    transformer = _transformer("FluxTransformer2DModel", in_channels=16)
    pipe = getattr(diffusers, kind)(**_texts(2), transformer=transformer, vae=_vae(4), scheduler=FLOW(shift=3.0))
    return pipe, lambda seed=0, samples=1: {**SIZE, "true_cfg_scale": 2.0, **_embeds(seed, samples, (5, 32), pooled=32)}


def flux2() -> Tiny:
    """No guidance but the embedded one."""
    transformer = _transformer("Flux2Transformer2DModel", in_channels=16)
    vae = _ready(diffusers.AutoencoderKLFlux2(**_vae_config(4)))
    pipe = diffusers.Flux2Pipeline(**_texts(1), transformer=transformer, vae=vae, scheduler=FLOW(shift=3.0))
    return pipe, lambda seed=0, samples=1: {**SIZE, **_embeds(seed, samples, (5, 32), negative=False)}


def qwen_image() -> Tiny:
    """Separate calls in contexts; texts of different lengths, hence programs of their own."""
    transformer = _transformer("QwenImageTransformer2DModel", 2)
    vae = _ready(
        diffusers.AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], **_normal(4))
    )
    pipe = diffusers.QwenImagePipeline(**_texts(1), transformer=transformer, vae=vae, scheduler=FLOW(shift=3.0))
    return pipe, lambda seed=0, samples=1: {**SIZE, **_embeds(seed, samples, (7, 12), mask="prompt_embeds_mask")}


def wan(transformers: int = 1) -> Tiny:
    """Separate calls in contexts that also say which step it is; a second transformer takes over in the middle."""
    first, second = (_transformer("WanTransformer3DModel", 2) if i < transformers else None for i in range(2))
    shared = {"transformer_2": second, "boundary_ratio": 0.7} if second is not None else {}
    vae = _ready(
        diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            scale_factor_temporal=2,
            scale_factor_spatial=2,
            **_normal(4),
        )
    )
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = diffusers.WanPipeline(**_texts(1), transformer=first, **shared, vae=vae, scheduler=scheduler)
    return pipe, lambda seed=0, samples=1: {**VIDEO, **_embeds(seed, samples, (5, 16))}


def hunyuan_video() -> Tiny:
    """Separate calls in contexts; the forward reads the text's mask."""
    transformer = _transformer("HunyuanVideoTransformer3DModel")
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    vae = diffusers.AutoencoderKLHunyuanVideo(
        **blocks,
        down_block_types=("HunyuanVideoDownBlock3D",) * 2,
        up_block_types=("HunyuanVideoUpBlock3D",) * 2,
        spatial_compression_ratio=2,
        mid_block_add_attention=False,
    )
    pipe = diffusers.HunyuanVideoPipeline(**_texts(2), transformer=transformer, vae=_ready(vae), scheduler=FLOW(shift=3.0))
    fixed = {**VIDEO, "true_cfg_scale": 2.0}
    return pipe, lambda seed=0, samples=1: {**fixed, **_embeds(seed, samples, (6, 16), pooled=16, mask="prompt_attention_mask")}


def cogvideox() -> Tiny:
    """One batch in a context of its own."""
    transformer = _transformer("CogVideoXTransformer3DModel", 2, sample_width=8, sample_height=8)
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = diffusers.CogVideoXPipeline(**_texts(1), transformer=transformer, vae=_ready(vae), scheduler=diffusers.CogVideoXDDIMScheduler())
    return pipe, lambda seed=0, samples=1: {**VIDEO, **_embeds(seed, samples, (6, 16))}


def ltx() -> Tiny:
    """One batch in a context of its own; sizes are plain numbers of the call."""
    transformer = _transformer("LTXVideoTransformer3DModel", 2)
    halves, all_same = (True, False), (1, 1)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=halves,
        decoder_spatio_temporal_scaling=halves,
        decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False),
        upsample_factor=all_same,
        patch_size=1,
    )
    pipe = diffusers.LTXPipeline(**_texts(1), transformer=transformer, vae=_ready(vae), scheduler=FLOW(shift=3.0))
    fixed = {"height": 32, "width": 32, "num_frames": 5}
    return pipe, lambda seed=0, samples=1: {**fixed, **_embeds(seed, samples, (6, 16), mask="prompt_attention_mask")}


def z_image() -> Tiny:
    """One batch as lists of tensors; the timestep rises."""
    transformer = _transformer("ZImageTransformer2DModel")
    pipe = diffusers.ZImagePipeline(**_texts(1), transformer=transformer, vae=_vae(4), scheduler=FLOW(shift=3.0))

    def prompt(seed: int = 0, samples: int = 1) -> dict[str, Any]:
        return {**SIZE, **{name: list(texts) for name, texts in _embeds(seed, samples, (7, 12)).items()}}

    return pipe, prompt


def lumina2() -> Tiny:
    """Separate calls without contexts; the timestep rises, and guidance can end early."""
    transformer = _transformer("Lumina2Transformer2DModel")
    pipe = diffusers.Lumina2Pipeline(**_texts(1), transformer=transformer, vae=_vae(4, halvings=3), scheduler=FLOW(shift=3.0))
    fixed = {"height": 64, "width": 64}
    return pipe, lambda seed=0, samples=1: {**fixed, **_embeds(seed, samples, (5, 24), mask="prompt_attention_mask")}


PIPELINES: dict[str, Callable[..., Tiny]] = {
    build.__name__: build
    for build in (dit, pixart_sigma, sd3, flux, flux2, qwen_image, wan, hunyuan_video, cogvideox, ltx, z_image, lumina2)
}


def run(pipe: Any, arguments: Mapping[str, Any], seed: int = 0, steps: int = 8, **more: Any) -> Tensor:
    """One generation, as a tensor: the latent unless `output_type` says otherwise."""
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
    if isinstance(pipe, diffusers.DiTPipeline):
        call["output_type"] = "pt"  # has no other form without rounding
    (result,) = pipe(**{**call, **arguments, "return_dict": False, **more})
    return torch.as_tensor(result).clone() if isinstance(result, Tensor | np.ndarray) else result


def _transformer(name: str, each: int = 1, **changes: Any) -> nn.Module:
    """`each`: how often every kind of block occurs; 2 where there is one kind only."""
    spec = all_specs()[name]
    return replace(spec, tiny={**spec.tiny, **changes}).model(layers=each)


def _ready(model: nn.Module) -> nn.Module:
    return model.eval()


def _vae_config(channels: int, halvings: int = 1) -> dict[str, Any]:
    return {
        "block_out_channels": (8,) * (halvings + 1),
        "down_block_types": ("DownEncoderBlock2D",) * (halvings + 1),
        "up_block_types": ("UpDecoderBlock2D",) * (halvings + 1),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": channels,
        "mid_block_add_attention": False,
    }


def _vae(channels: int, halvings: int = 1) -> nn.Module:
    torch.manual_seed(1)
    return _ready(diffusers.AutoencoderKL(**_vae_config(channels, halvings), shift_factor=0.1))


def _normal(channels: int) -> dict[str, list[float]]:
    return {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}


def _texts(encoders: int) -> dict[str, None]:
    """No text encoder and no tokenizer."""
    return {f"{part}{'' if i == 1 else f'_{i}'}": None for i in range(1, encoders + 1) for part in ("text_encoder", "tokenizer")}


def _embeds(
    seed: int, samples: int, shape: tuple[int, int], pooled: int | None = None, mask: str | None = None, negative: bool = True
) -> dict[str, Tensor]:
    """Embeddings of a prompt and of nothing ("negative_..."), with what the pipelines want beside them."""
    given: dict[str, Tensor] = {}
    for prefix, source in (("", 1000 + seed), ("negative_", 999))[: 1 + negative]:
        generator = torch.Generator().manual_seed(source)
        given[f"{prefix}prompt_embeds"] = torch.randn(1, *shape, generator=generator).repeat(samples, 1, 1)
        if pooled is not None:
            given[f"{prefix}pooled_prompt_embeds"] = torch.randn(1, pooled, generator=generator).repeat(samples, 1)
        if mask is not None:
            kept = torch.ones(samples, shape[0], dtype=torch.int64)
            kept[:, shape[0] - (2 if prefix else seed % 2) :] = 0
            given[f"{prefix}{mask}"] = kept
    return given
