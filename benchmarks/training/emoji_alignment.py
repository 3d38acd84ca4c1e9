"""Align the text encoders with the pictures before the transformer sees them: each learns to predict a caption's latents.

A FLUX starts from text encoders that know what words look like; encoders that start at random leave the transformer to memorise every
emoji by itself. The predictors are thrown away; the loss is the mean squared error against the packed latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training.emoji_text import WIDTH
from rfc_fx.io.atomic import write_atomically

BATCH = 64
LEARNING_RATE = 3e-3
REPORT_EVERY = 50

Packed = Float[Tensor, "N 64 16"]
Ids = Int[Tensor, "N T"]


class Predictor(nn.Module):
    """Latents from T5's tokens, read by one attention layer with a query for each place, and from CLIP's pooled output, linearly."""

    def __init__(self, places: int = 64, channels: int = 16) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(places, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.out = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, channels))
        self.pooled = nn.Linear(WIDTH, places * channels)

    def forward(self, tokens: Float[Tensor, "N T D"], pooled: Float[Tensor, "N D"]) -> tuple[Packed, Packed]:
        """(from the tokens, from the pooled output)."""
        read = self.attention(self.queries.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)[0]
        return self.out(read), self.pooled(pooled).unflatten(1, (len(self.queries), -1))


def train(model: Any, batch: Callable[[int], tuple[Packed, Ids, Ids]], out: Path, steps: int, console: Console, seed: int = 0) -> None:
    """Train the text encoders of `model`, or load the ones in `out`; `batch` returns latents, CLIP's and T5's token ids."""
    encoders = nn.ModuleList([model.text_encoder, model.text_encoder_2])
    if out.exists():
        encoders.load_state_dict(torch.load(out, weights_only=True))
        return
    torch.manual_seed(seed)
    predictor, losses = Predictor(), []
    weights = [*encoders.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        latents, clip_ids, t5_ids = batch(BATCH)
        from_tokens, from_pooled = predictor(model.text_encoder_2(t5_ids)[0], model.text_encoder(clip_ids).pooler_output)
        errors = torch.stack([F.mse_loss(from_tokens, latents), F.mse_loss(from_pooled, latents)])
        errors.sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(errors.detach())
        if (step + 1) % REPORT_EVERY == 0:
            tokens, pooled = torch.stack(losses).mean(dim=0).tolist()
            console.print(f"text encoders: step {step + 1}, error from tokens {tokens:.3f}, from the pooled output {pooled:.3f}")
            losses = []
    write_atomically(out, lambda path: torch.save(encoders.state_dict(), path))
