"""Tiles: samples as pictures of a size that fits beside others; of a video some frames in a row, of sound its waveform."""

from __future__ import annotations

from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

MIN_TILE, MAX_TILE = 48, 256
"""Samples are shown at least and at most this wide, in pixels."""

MIN_COLOR_TILE = 128
"""Pictures in colour are shown at least this wide."""

FRAMES = 6
"""At most so many frames of a video are shown."""

WAVE = (64, 256)
"""Height and width of a waveform."""


def tiles(samples: Float[Tensor, "N ..."]) -> Float[Tensor, "N C H W"]:
    """A tile for each picture (N C H W), video (N F C H W) or piece of sound (N C T), in [-1, 1]."""
    if samples.dim() == 5:
        return _rows(samples)
    return torch.stack([_waveform(sound) for sound in samples]) if samples.dim() == 3 else _sized(samples)


def _sized(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C h w"]:
    """Whole-number enlargement of small samples, so that pixels stay pixels; smooth reduction of large ones."""
    size = images.shape[-1]
    least = MIN_TILE if images.shape[1] == 1 else MIN_COLOR_TILE
    if size < least:
        return F.interpolate(images, scale_factor=ceil(least / size), mode="nearest")
    if size > MAX_TILE:
        return F.interpolate(images, scale_factor=MAX_TILE / size, mode="area")
    return images


def _rows(videos: Float[Tensor, "N F C H W"]) -> Float[Tensor, "N C h w"]:
    """Frames at equal distances, the first and the last among them, side by side."""
    count = videos.shape[1]
    shown = torch.linspace(0, count - 1, min(count, FRAMES)).round().long().tolist()
    frames = [F.pad(_sized(videos[:, index]), (0, 2), value=1.0) for index in shown]
    return torch.cat(frames, dim=-1)[..., :-2]


def _waveform(sound: Float[Tensor, "C T"]) -> Float[Tensor, "3 h w"]:
    """The smallest and the largest value of every stretch of time, black on white."""
    height, width = WAVE
    mono = sound.mean(0).nan_to_num().clamp(-1, 1)
    spans = F.interpolate(mono[None, None], size=width * max(1, ceil(len(mono) / width)), mode="nearest").reshape(width, -1)
    low, high = ((1 - edge) / 2 * (height - 1) for edge in (spans.amax(1), spans.amin(1)))
    rows = torch.arange(height, dtype=torch.float32)[:, None]
    drawn = (rows >= low.floor()) & (rows <= high.ceil())
    return torch.where(drawn, -1.0, 1.0).expand(3, height, width)
