"""A judge of emoji pictures: a small classifier, and what it reads in samples.

It is trained on drawings of 96 pixels that are turned, scaled, moved, blurred and laid on gradients of random colours, none of which the
pictures of the emoji model's training are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training.emoji_data import SIZE, background_rgb, render
from benchmarks.training.emoji_names import BACKGROUNDS, EMOJI
from rfc_fx.io.atomic import write_atomically

CANDIDATES = 20
BORDER = 3
"""Width in pixels of the frame in which the background's colour is read; no icon reaches into it."""

Pictures = Float[Tensor, "N 3 64 64"]
Labels = Int[Tensor, " N"]


def new_classifier() -> nn.Module:
    """Five strided convolutions, then the mean over what is left of the picture."""
    widths = (3, 24, 48, 96, 128, 192)
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(EMOJI)))


def distorted(drawings: UInt8[Tensor, "E S 4 96 96"], labels: Labels) -> Pictures:
    """A picture in [-1, 1] of each label: random style, affine map, gradient, blur and noise, from torch's default generator."""
    n = len(labels)
    rgba = drawings[labels, torch.randint(drawings.shape[1], (n,))].float() / 255
    angle, scale = 0.25 * (2 * torch.rand(n) - 1), 0.95 + 0.35 * torch.rand(n)
    cos, sin, move = angle.cos() * scale, angle.sin() * scale, 0.24 * (torch.rand(n, 2) - 0.5)
    affine = torch.stack([torch.stack([cos, -sin, move[:, 0]], dim=1), torch.stack([sin, cos, move[:, 1]], dim=1)], dim=1)
    rgba = F.grid_sample(rgba, F.affine_grid(affine, [n, 4, SIZE, SIZE], align_corners=False), align_corners=False)
    ramp = torch.linspace(0, 1, SIZE)[None, None, None, :]
    near, far = torch.rand(2, n, 3, 1, 1)
    back = torch.lerp(near, near + 0.3 * (far - near), ramp)
    pictures = rgba[:, :3] + back * (1 - rgba[:, 3:])
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = torch.lerp(pictures, blurred, torch.rand(n, 1, 1, 1)) + 0.05 * torch.rand(n, 1, 1, 1) * torch.randn(n, 3, SIZE, SIZE)
    return 2 * pictures.clamp(0, 1) - 1


def train(icons: Path, out: Path, steps: int = 1500, batch: int = 64, seed: int = 0) -> nn.Module:
    """Train the classifier on what is drawn from the icon sets in `icons`, or load the one in `out`."""
    model = new_classifier()
    if out.exists():
        model.load_state_dict(torch.load(out, weights_only=True))
        return model.eval()
    drawings = render(icons, size=96, margin=2)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in track(range(steps), "training the judge"):
        labels = torch.randint(len(EMOJI), (batch,))
        loss = F.cross_entropy(model(distorted(drawings, labels)), labels, label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    write_atomically(out, lambda path: torch.save(model.state_dict(), path))
    return model.eval()


@torch.no_grad()
def emoji_read(model: Any, pictures: Pictures, labels: Labels, seed: int = 0) -> Float[Tensor, " N"]:
    """1 where the classifier ranks the label first among itself and 19 random others, else 0."""
    logits: Tensor = model(pictures.clamp(-1, 1))
    own = logits.gather(1, labels[:, None])
    others = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)).scatter(1, labels[:, None], -1.0)
    rivals = logits.gather(1, others.topk(CANDIDATES - 1, dim=1).indices)
    return (own > rivals).all(dim=1).float()


def background_read(pictures: Pictures, labels: Labels) -> Float[Tensor, " N"]:
    """1 where the median colour of the frame is nearest to the asked background's among all backgrounds, else 0."""
    frame = torch.ones(SIZE, SIZE, dtype=torch.bool)
    frame[BORDER:-BORDER, BORDER:-BORDER] = False
    colour = pictures[:, :, frame].median(dim=2).values / 2 + 0.5
    return (torch.cdist(colour, background_rgb(torch.arange(len(BACKGROUNDS)))).argmin(dim=1) == labels).float()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Shares of so many samples."""

    samples: int
    emoji: float
    background: float


def read(model: Any, chunks: Iterator[tuple[Pictures, Int[Tensor, "N 3"]]]) -> Reading:
    """What the judge reads in pictures of (emoji, style, background)."""
    right = [
        torch.stack([emoji_read(model, pictures, rows[:, 0], seed=i), background_read(pictures, rows[:, 2])])
        for i, (pictures, rows) in enumerate(chunks)
    ]
    shares = torch.cat(right, dim=1)
    return Reading(samples=shares.shape[1], emoji=float(shares[0].mean()), background=float(shares[1].mean()))
