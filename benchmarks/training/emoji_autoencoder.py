"""The autoencoder of the emoji model: 64x64 RGB to 16x16 latents of 4 channels, trained on random emoji and backgrounds.

The loss is the mean absolute error of pixels and of their differences to the next pixel, and the KL divergence of a posterior of fixed
variance (a decoder that reads noisy latents forgives what the transformer gets slightly wrong).
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from benchmarks.training.emoji_data import Icons, background_rgb
from benchmarks.training.loop import save_grid
from rfc_fx.io.atomic import write_atomically

LATENT_CHANNELS = 4
NOISE = 0.1
"""Standard deviation of the posterior."""

KL_WEIGHT = 2e-3
BATCH = 16
LEARNING_RATE = 2e-3
REPORT_EVERY = 50
CROP = 32
CROPPED = 0.75
"""Share of the time in which crops of CROP pixels are learned, four times as many in the time; whole pictures after it."""

Pictures = Float[Tensor, "N 3 H W"]
Latents = Float[Tensor, "N 4 h w"]


def new_autoencoder() -> Any:
    """Return the untrained `AutoencoderKL`, f4, without attention."""
    from diffusers import AutoencoderKL

    widths = (16, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def encode(model: Any, pictures: Pictures) -> Latents:
    """The mean of the posterior, not normalised."""
    mean: Tensor = model.encode(pictures).latent_dist.mean
    return mean


def drawn(icons: Icons, n: int) -> Pictures:
    """Random emoji on backgrounds of the list (two in three) or of any colour, from torch's default generator."""
    rgba = icons.rgba.flatten(0, 1)
    rgba = rgba[torch.randint(len(rgba), (n,))].float() / 255
    back = background_rgb(torch.randint(10, (n,)))
    back = torch.where(torch.rand(n, 1) < 1 / 3, torch.rand(n, 3), back)[:, :, None, None]
    return 2 * (rgba[:, :3] + back * (1 - rgba[:, 3:])) - 1


def reconstruction_loss(decoded: Pictures, pictures: Pictures) -> Float[Tensor, ""]:
    """Mean absolute error of pixels and, added, of differences along both axes."""
    error = decoded - pictures
    return error.abs().mean() + 0.5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())


def train(icons: Icons, work: Path, minutes: float, seed: int, console: Console, decoder_only: bool = False) -> Any:
    """Train, or go on training, up to `minutes` in all; return the model with shift and scale of its latents in its configuration.

    With `decoder_only` latents and configuration stay as they are, so that what was trained on the latents stays valid.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "autoencoder.pt"
    torch.manual_seed(seed)
    model = new_autoencoder()
    weights = list((model.decoder if decoder_only else model).parameters())
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step, before, normal = 0, 0.0, {"shift_factor": 0.0, "scaling_factor": 1.0}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        step, before, normal = state["step"], state["seconds"], state["normal"]
        if state["decoder_only"] == decoder_only:
            optimizer.load_state_dict(state["optimizer"])
    started, losses = time.monotonic() - before, []

    def save(normal: dict[str, float]) -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": time.monotonic() - started,
            "normal": normal,
            "decoder_only": decoder_only,
        }
        write_atomically(checkpoint, partial(torch.save, state))

    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        torch.manual_seed(seed * 1_000_003 + step)
        since = max(0.0, (share * 60 * minutes - before) / max(1e-9, 60 * minutes - before))
        rate = LEARNING_RATE * min(1.0, (step + 1) / 50) * max(0.02, 0.5 * (1 + math.cos(math.pi * since)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pictures = drawn(icons, BATCH)
        if since < CROPPED:
            top, left = torch.randint(pictures.shape[-1] - CROP + 1, (2,)).tolist()
            pictures = pictures[:, :, top : top + CROP, left : left + CROP]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not decoder_only):
                latents = encode(model, pictures).float()
            decoded = model.decode(latents + NOISE * torch.randn_like(latents)).sample
        loss = reconstruction_loss(decoded.float(), pictures) + KL_WEIGHT * latents.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(loss.detach())
        if step % REPORT_EVERY == 0:
            console.print(f"autoencoder: step {step}, {share:.0%} of the time, loss {torch.stack(losses).mean():.4f}")
            losses = []
            save(normal)
    if not decoder_only:
        normal = latent_scale(model, icons)
    save(normal)
    model.register_to_config(**normal)
    report(model, icons, work / f"autoencoder-{step:05d}.png", console)
    return model.eval()


@torch.no_grad()
def latent_scale(model: Any, icons: Icons) -> dict[str, float]:
    """Mean and inverse standard deviation of latents, as `AutoencoderKL` names them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        latents = encode(model, drawn(icons, 256))
    return {"shift_factor": float(latents.mean()), "scaling_factor": float(1 / latents.std())}


@torch.no_grad()
def report(model: Any, icons: Icons, path: Path, console: Console) -> float:
    """Write pictures above their reconstructions; return the PSNR in dB, 10 log10(4 / MSE)."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pictures = drawn(icons, 60)
    decoded = torch.cat([model.decode(encode(model, chunk)).sample for chunk in pictures.split(20)])
    save_grid(torch.cat([row for pair in zip(pictures.split(20), decoded.split(20), strict=True) for row in pair]), path, 20, zoom=1)
    psnr = 10 * math.log10(4 / float(F.mse_loss(decoded.clamp(-1, 1), pictures)))
    console.print(f"autoencoder: {psnr:.1f} dB, {json.dumps({k: round(v, 4) for k, v in model.config.items() if k in NORMAL})}")
    return psnr


NORMAL = ("shift_factor", "scaling_factor")


def load(work: Path) -> Any:
    """The autoencoder of the checkpoint in `work`, ready to use."""
    state = torch.load(work / "autoencoder.pt", weights_only=True)
    model = new_autoencoder()
    model.load_state_dict(state["model"])
    model.register_to_config(**state["normal"])
    return model.eval()
