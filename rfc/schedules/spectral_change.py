"""The schedule that measures change behind a filter which lets through what the noise level has settled: SeaCache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rfc.ranks import is_split
from rfc.schedules.base import Numbers, Signal, Watched, checked_count
from rfc.schedules.change import ThresholdRule, relative_change
from rfc.state import Clock, SlotSpec, State

LIMIT = 13.8
"""Of |lambda|: shares of noise from 1e-6 to 1 - 1e-6."""

MOST_LEVELS = 129
"""Of a curve of noise levels."""


@dataclass(frozen=True, kw_only=True)
class SpectralChange(ThresholdRule):
    """Full when the filtered input of the first site has changed enough, step by step (SeaCache, arXiv 2602.18993).

    With y(t) = filter(I(t), lambda(t)) (`spectral_filter`), full when the sum of mean |y(t) - y(t+1)| / mean |y(t+1)| since the last full
    step reaches `threshold`, and after `max_skip` skipped steps in a row. The first `warmup` steps are full, and the last where
    `num_steps` is given. lambda, half the log-SNR, follows from the timestep that the model is called with: `levels` are its values at
    the timesteps `span` (i/K)^2, joined by lines in the root of the timestep. None: those of flow matching, where the share of noise is
    timestep / `span`, or the timestep itself up to 1. `grid`: rows and columns of the tokens, frame by frame; None: a square.
    """

    threshold: float = field()
    warmup: int = 1
    num_steps: int | None = None
    max_skip: int | None = 2
    power: float = 3.0
    levels: tuple[float, ...] | None = None
    span: float = 1000.0
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "SpectralChange"
        if self.max_skip is not None:
            checked_count(where, "max_skip", self.max_skip, 1)
        for name in ("power", "span"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
                raise ValueError(f"{where}: {name} must be a number above 0, got {value!r}")
        if self.levels is not None:
            levels = tuple(self.levels) if isinstance(self.levels, Iterable) else ()
            if not 2 <= len(levels) <= MOST_LEVELS or not all(isinstance(level, int | float) and math.isfinite(level) for level in levels):
                raise ValueError(f"{where}: levels must be 2 to {MOST_LEVELS} finite numbers, got {self.levels!r}")
            object.__setattr__(self, "levels", tuple(map(float, levels)))
        if self.grid is not None:
            grid = tuple(self.grid) if isinstance(self.grid, Iterable) else ()
            if len(grid) != 2:
                raise ValueError(f"{where}: grid must be rows and columns, got {self.grid!r}")
            for length in grid:
                checked_count(where, "grid: each number", length, 1)
            object.__setattr__(self, "grid", grid)

    @property
    def watches(self) -> tuple[Signal, ...]:
        return ("I", "timestep")

    @property
    def remembers(self) -> Literal["full steps", "all steps"]:
        return "all steps"

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (*super().in_graph, self.power, self.levels, self.span, self.grid)

    def numbers(self) -> dict[str, Tensor]:
        return {**super().numbers(), "max_skip": torch.tensor(math.inf if self.max_skip is None else float(self.max_skip))}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return ThresholdRule.full(numbers, step, k, total) | (k > numbers["max_skip"])

    def slots(self, watched: Mapping[str, SlotSpec]) -> dict[str, SlotSpec]:
        self.axes(watched["I"].shape)
        return {"I": watched["I"], "level": SlotSpec((1,), torch.float32)}

    def refresh(self, old: State, watched: Watched, clock: Clock) -> dict[str, Tensor]:
        return {"I": watched["I"], "level": self.level(watched["timestep"]).reshape(1)}

    def error(self, watched: Watched, state: State, clock: Clock) -> Float[Tensor, ""]:
        axes = self.axes(tuple(watched["I"].shape))
        pairs = ((watched["I"], self.level(watched["timestep"])), (state["I"], state["level"].reshape([])))
        now, before = (spectral_filter(I.float().unflatten(1, axes), level, self.power) for I, level in pairs)
        return relative_change(now, before)

    def axes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of an input of that shape; ValueError where they are not known."""
        if is_split():
            raise ValueError("SpectralChange: filters all tokens of a sample at once, which here lie on several ranks; choose rfc.TeaCache")
        tokens = shape[1] if len(shape) == 3 else 0
        side = isqrt(tokens)
        rows, columns = (side, side) if self.grid is None else self.grid
        if tokens == 0 or tokens % (rows * columns) or (self.grid is None and side * side != tokens):
            raise ValueError(
                f"SpectralChange: expected (samples, tokens, channels) with {'a square' if self.grid is None else 'frames'} of "
                f"{rows} x {columns} tokens, got {shape}; pass grid=(rows, columns)"
            )
        return tokens // (rows * columns), rows, columns

    def level(self, timestep: Tensor) -> Float[Tensor, ""]:
        """lambda at the largest timestep of a batch."""
        t = timestep.float().max()
        if self.levels is None:
            noise = torch.where(t <= 1, t, t / self.span).clamp(1e-6, 1 - 1e-6)
            return ((1 - noise) / noise).log()
        place = (t / self.span).clamp(0, 1).sqrt() * (len(self.levels) - 1)
        level = torch.zeros_like(place)
        for i, at in enumerate(self.levels):
            level = level + at * (1 - (place - i).abs()).clamp(min=0)
        return level.clamp(-LIMIT, LIMIT)


def spectral_filter(x: Float[Tensor, "N *S D"], level: Float[Tensor, ""], power: float) -> Float[Tensor, "N *S D"]:
    """The inner axes behind the Wiener filter of a signal with spectrum |f|^-power along each axis, in noise of log-SNR 2 lambda.

    With S = |f|^-power, alpha / sigma = exp(lambda) and f in cycles a token, gain(f) = alpha S / (alpha^2 S + sigma^2), which is
    proportional to 1 / (1 + |f|^power exp(-2 lambda)), then divided by its mean over the frequencies (SeaCache, arXiv 2602.18993, Eq. 7).
    It is separable, so each axis takes one product with a real circulant matrix, the inverse DFT x gain x DFT.
    """
    for axis in range(1, x.dim() - 1):
        if (length := x.shape[axis]) > 1:
            x = (x.movedim(axis, -1) @ filter_matrix(length, level, power)).movedim(-1, axis)
    return x


def filter_matrix(length: int, level: Float[Tensor, ""], power: float) -> Float[Tensor, "L L"]:
    """A[n, m] = sum_f gain(f) cos(2 pi f (n - m)) / L, over the frequencies of a real signal of that length."""
    n = torch.arange(length, device=level.device, dtype=torch.float32)
    f = torch.minimum(n, length - n) / length
    gain = 1 / (1 + f**power * torch.exp(-2 * level))
    gain = gain / gain.mean() / length
    angle = torch.remainder(n[:, None] * n, float(length)) * (2 * math.pi / length)
    C, S = angle.cos(), angle.sin()
    return (C * gain) @ C.T + (S * gain) @ S.T
