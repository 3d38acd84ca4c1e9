"""The emoji model: a small FLUX of stock parts, its flow-matching loss and its pipeline."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.training.emoji_autoencoder import LATENT_CHANNELS
from benchmarks.training.emoji_text import CLIP_TOKENS, TOKENS, WIDTH, new_clip_encoder, new_t5_encoder, token_ids

HEADS = 6
AXES = (8, 12, 12)
"""Channels of a head that rotate with (nothing, row, column)."""

DOUBLE_BLOCKS = 4
SINGLE_BLOCKS = 8
GUIDANCE = 3.0
"""`true_cfg_scale` that samples are drawn with."""

Latents = Float[Tensor, "N 4 16 16"]
Packed = Float[Tensor, "N 64 16"]
Ids = Int[Tensor, "N T"]


def new_transformer(double_blocks: int = DOUBLE_BLOCKS, single_blocks: int = SINGLE_BLOCKS, heads: int = HEADS) -> Any:
    """The untrained transformer of the emoji model (`new_flux`)."""
    return new_flux(
        in_channels=4 * LATENT_CHANNELS, blocks=(double_blocks, single_blocks), heads=heads, axes=AXES, text_width=WIDTH, pooled_width=WIDTH
    )


def new_flux(*, in_channels: int, blocks: tuple[int, int], heads: int, axes: tuple[int, ...], text_width: int, pooled_width: int) -> Any:
    """An untrained `FluxTransformer2DModel`; modulations and the last layer begin at zero (adaLN-Zero, arXiv 2212.09748).

    `blocks`: (double, single); `axes`: channels of a head that rotate with (nothing, row, column), a head's width together.
    """
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        attention_head_dim=sum(axes),
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        guidance_embeds=False,
        axes_dims_rope=axes,
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or is_modulation(name)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def is_modulation(name: str) -> bool:
    """Whether the module or weight of this name makes shifts, scales and gates of the conditioning."""
    return ".norm1.linear" in name or ".norm1_context.linear" in name or ".norm.linear" in name or name.startswith("norm_out.linear")


def new_scheduler() -> Any:
    """`FlowMatchEulerDiscreteScheduler` with FLUX.1-dev's configuration: shift by exp(mu), mu linear in the number of tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )


def shift(tokens: int = 64) -> float:
    """mu of the scheduler above, as `FluxPipeline` computes it."""
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)


def pack(latents: Latents) -> Packed:
    """2x2 latents to a token, as `FluxPipeline` packs them."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def image_ids(rows: int, columns: int) -> Float[Tensor, "T 3"]:
    """(0, row, column) of every token."""
    return torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(columns).float())


class TextToImage(nn.Module):
    """Text encoders and transformer, which learn together."""

    def __init__(self, tokenizers: tuple[Any, Any], transformer: Any) -> None:
        super().__init__()
        self.text_encoder = new_clip_encoder(tokenizers[0])
        self.text_encoder_2 = new_t5_encoder(tokenizers[1])
        self.transformer = transformer
        self.register_buffer("image_ids", image_ids(8, 8), persistent=False)
        self.register_buffer("text_ids", torch.zeros(TOKENS, 3), persistent=False)

    def forward(self, noisy: Packed, time: Float[Tensor, " N"], clip_ids: Ids, t5_ids: Ids) -> Packed:
        """The velocity d x_t / dt of x_t = (1 - t) x_0 + t noise."""
        velocity: Tensor = self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=self.text_encoder_2(t5_ids)[0],
            pooled_projections=self.text_encoder(clip_ids).pooler_output,
            timestep=time,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            return_dict=False,
        )[0]
        return velocity


class LinearInBfloat16(TorchFunctionMode):
    """Matrix products of linear layers in bfloat16, all else as it is: attention's backward pass in bfloat16 is slow on CPUs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs:
            rounded: list[Any] = [None if arg is None else arg.bfloat16() for arg in args]
            return func(*rounded).float()
        return func(*args, **(kwargs or {}))


def flow_loss(model: nn.Module, latents: Packed, clip_ids: Ids, t5_ids: Ids, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
    """E |v(x_t, t) - (noise - x_0)|^2, t the shifted logit-normal of SD3 (arXiv 2403.03206) at the scheduler's shift."""
    time = torch.sigmoid(torch.randn(len(latents), generator=generator) + shift())
    noise = torch.randn(latents.shape, generator=generator)
    noisy = torch.lerp(latents, noise, time[:, None, None])
    return F.mse_loss(model(noisy, time, clip_ids, t5_ids).float(), noise - latents)


def encode_captions(tokenizers: tuple[Any, Any], captions: list[str]) -> tuple[Ids, Ids]:
    """Token ids for CLIP and for T5."""
    return token_ids(tokenizers[0], captions, CLIP_TOKENS), token_ids(tokenizers[1], captions, TOKENS)


def pipeline(model: Any, tokenizers: tuple[Any, Any], autoencoder: Any) -> Any:
    """The `FluxPipeline` of the parts; 64x64 pixels by default."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline(
        scheduler=new_scheduler(),
        vae=autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=tokenizers[0],
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizers[1],
        transformer=model.transformer,
    )
    pipe.default_sample_size = 16
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: Any, prompts: list[str], seeds: list[int], steps: int = 28, guidance: float = GUIDANCE) -> Float[Tensor, "N 3 64 64"]:
    """Pictures in [-1, 1] of the prompts, one generator per seed."""
    images = pipe(
        prompt=prompts,
        negative_prompt=[""] * len(prompts),
        true_cfg_scale=guidance,
        height=64,
        width=64,
        num_inference_steps=steps,
        max_sequence_length=TOKENS,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    pictures: Tensor = 2 * images.float() - 1
    return pictures
