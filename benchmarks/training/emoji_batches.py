"""Batches of the emoji model's training: the recipe, captions in random wordings, and latents of all combinations, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training import emoji_autoencoder
from benchmarks.training.emoji_data import PLAIN_WORDINGS, WORDINGS, Icons, caption, combinations
from benchmarks.training.emoji_model import encode_captions, pack
from benchmarks.training.emoji_text import tokenizers


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Warm-up, constant rate, linear decay over the last part of the run; counts are steps."""

    batch: int = 16
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    text_share: float = 0.1
    """Of the learning rate, for the text encoders, which are aligned already."""

    warmup_steps: int = 100
    decay_share: float = 0.2
    ema_decay: float = 0.998
    empty_captions: float = 0.1
    plain_captions: float = 0.1
    report_every: int = 50
    grid_every: int = 500
    checkpoint_every: int = 100

    def rate(self, step: int, progress: float) -> float:
        """The learning rate; `progress` is 1 at the end of the run."""
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps, max(0.0, 1 - progress) / self.decay_share)


ALIGNED = Recipe(empty_captions=0.02, plain_captions=0.05)
"""Captions that the text encoders are aligned on."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Packed latents of the combinations, trained and held out, and the tokenizers of their captions."""

    trained: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    """(combinations (N, 3), packed latents (N, 64, 16))."""

    tokenizers: tuple[Any, Any]

    def batch(self, recipe: Recipe, size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents and token ids of random combinations and wordings, from torch's default generator."""
        rows, latents = self.trained
        chosen = torch.randint(len(rows), (size or recipe.batch,))
        captions = [random_caption(row, recipe) for row in rows[chosen].tolist()]
        return latents[chosen], *encode_captions(self.tokenizers, captions)


def random_caption(combination: list[int], recipe: Recipe) -> str:
    """A caption in a random wording, or none; draws from torch's default generator."""
    kind, wording = torch.rand(2).tolist()
    if kind < recipe.empty_captions:
        return ""
    wordings = PLAIN_WORDINGS if kind < recipe.empty_captions + recipe.plain_captions else WORDINGS
    return caption(combination, wordings[int(wording * len(wordings))])


@torch.no_grad()
def latents_of(autoencoder: Any, icons: Icons, rows: Tensor) -> Tensor:
    """Normalised, packed latents of the combinations."""
    config = autoencoder.config
    latents = torch.cat([emoji_autoencoder.encode(autoencoder, icons.compose(chunk)) for chunk in rows.split(64)])
    return pack((latents - config.shift_factor) * config.scaling_factor)


def prepare(autoencoder: Any, icons: Icons, work: Path) -> Data:
    """Latents of all combinations, and the tokenizers of the run in `work`."""
    trained, held_out = combinations()
    return Data(
        trained=(trained, latents_of(autoencoder, icons, trained)),
        held_out=(held_out, latents_of(autoencoder, icons, held_out)),
        tokenizers=tokenizers(work),
    )
