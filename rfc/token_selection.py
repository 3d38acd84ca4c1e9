"""Tokens: which tokens of a feed-forward are computed between full steps, and what becomes of the others (ToCa, DuCa).

A full step leaves a score for each token of a feed-forward, from the attention before it in the same block. A PARTIAL step computes the
tokens with the highest scores, puts them among the remembered ones, and counts the age of the rest. All of it is pure functions of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isqrt, sqrt
from statistics import fmean
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from rfc.estimators.base import Estimator
from rfc.granularity import block_of
from rfc.phase import PhaseName, is_partial
from rfc.schedules.base import checked_count
from rfc.state import Clock, SlotSpec, State

Score = Literal["attention", "value", "random"]
"""Scores of a token: the attention it receives, how small its value is (V-caching), or a number drawn from its place."""

Grid = tuple[int, int]
"""Rows and columns of tokens."""

QUERIES = 1024
"""So many rows of an attention map are made at a time."""

MOST, MOST_PARTS = 1e300, 64
"""The largest weight, and the most parts, each of which is a program."""

POINTS = 64
"""Places in a part of the steps over which its ratio is averaged."""


class Place(NamedTuple):
    """Position of a feed-forward in the model, and its tokens."""

    layer: int
    layers: int
    tokens: int
    grid: Grid | None
    """Rows and columns of its tokens, where cells of four neighbours are known."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Which tokens PARTIAL steps compute (ToCa, arXiv 2410.05317; DuCa, arXiv 2412.18911; their released code for DiT).

    Score = s + `freshness` age / N, s the normalised score of the last full step; the best token of each 2x2 cell gets `bonus` times
    its own on top. Cells need the `grid` of rows and columns, by default that of a square image; without one there is no bonus.

    The share of tokens is `ratio` (1 + w - 2 w left / T) (1 + v - 2 v layer / (L - 1)) `emphasis`, at least 0 and at most 1, with w the
    `step_weight`, v the `layer_weight`, and `left` counting down to 0. As the shape of a program is fixed, it is constant over each of
    `parts` equal parts of the steps, the mean of that part: PARTIAL_1 is the program of the first. Where it is less than one token the
    feed-forward is reused. What T is, and which steps are PARTIAL, does not matter to the programs.
    """

    ratio: float = 0.07
    score: Score = "attention"
    freshness: float = 0.25
    bonus: float = 0.6
    grid: Grid | None = None
    parts: int = 4
    step_weight: float = 2.0
    layer_weight: float = -0.2
    emphasis: float = 2.5

    def __post_init__(self) -> None:
        if self.score not in get_args(Score):
            raise ValueError(f"Tokens: score must be one of {', '.join(get_args(Score))}, got {self.score!r}")
        for name, low, high in (("ratio", 0, 1), ("freshness", 0, MOST), ("bonus", 0, MOST), ("emphasis", 0, MOST)):
            _check_number(name, getattr(self, name), low, high)
        for name in ("step_weight", "layer_weight"):
            _check_number(name, getattr(self, name), -MOST, MOST)
        checked_count("Tokens", "parts", self.parts, 1, MOST_PARTS)
        if self.grid is not None:
            grid = tuple(self.grid) if isinstance(self.grid, Iterable) else ()
            if len(grid) != 2 or not all(isinstance(length, int) and length > 0 and length % 2 == 0 for length in grid):
                raise ValueError(f"Tokens: grid must be two even numbers, rows and columns of tokens, got {self.grid!r}")
            object.__setattr__(self, "grid", grid)

    @property
    def phases(self) -> tuple[PhaseName, ...]:
        """The PARTIAL phases, in the order of their parts of the steps."""
        return tuple(f"PARTIAL_{part + 1}" for part in range(self.parts))

    def phase(self, step: int, steps: int) -> PhaseName:
        """The PARTIAL phase of a step, counted from 0, of so many."""
        return self.phases[min(step * self.parts // steps, self.parts - 1)]

    def share(self, phase: PhaseName, layer: int, layers: int) -> float:
        """Share of the tokens of a layer that the phase computes."""
        part = self.phases.index(phase)
        v, w = self.layer_weight, self.step_weight
        weight = self.ratio * self.emphasis * (1 + v - 2 * v * layer / max(1, layers - 1))
        left = (1 - (part + (point + 0.5) / POINTS) / self.parts for point in range(POINTS))
        return fmean(min(max(weight * (1 + w - 2 * w * rest), 0.0), 1.0) for rest in left)

    def count(self, phase: PhaseName, place: Place) -> int:
        """Number of tokens that the phase computes."""
        return int(self.share(phase, place.layer, place.layers) * place.tokens + 1e-6)

    def grid_of(self, tokens: int) -> Grid | None:
        """Rows and columns of the latent's tokens: `grid`, frame by frame, else a square; None where there are no cells."""
        if self.bonus == 0:
            return None
        if self.grid is not None:
            return self.grid if tokens % (self.grid[0] * self.grid[1]) == 0 else None
        side = isqrt(tokens)
        return (side, side) if side * side == tokens and side % 2 == 0 else None

    def slots(self, samples: int, tokens: int) -> dict[str, SlotSpec]:
        """State of a feed-forward beside its output."""
        spec = SlotSpec((samples, tokens), torch.float32)
        return {"age": spec} if self.score == "random" else {"age": spec, "score": spec}

    def choose(self, state: State, place: Place, count: int, period: Tensor, clock: Clock) -> Int[Tensor, "N k"]:
        """The `count` tokens with the highest scores; `period` is N, what ages are measured in."""
        age = state["age"]
        s = state["score"] if "score" in state else random_score(place.tokens, place.layer, clock).expand_as(age)
        total = s + self.freshness * age / period
        if place.grid is not None:
            total = with_bonus(total, self.bonus, place.grid)
        return total.topk(count, dim=-1).indices


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value in (inf, -inf):
        bounds = "" if low == -MOST else f" of at least {low:g}" if high == MOST else f" from {low:g} to {high:g}"
        raise ValueError(f"Tokens: {name} must be a finite number{bounds}, got {value!r}")


def layers(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Layer of each named site's block, and the number of layers; sites outside of blocks are left out."""
    blocks = {name: block for name in names if (block := block_of(name))}
    order = {block: i for i, block in enumerate(dict.fromkeys(blocks.values()))}
    return {name: (order[block], len(order)) for name, block in blocks.items()}


class Operands(NamedTuple):
    """Operands of an attention."""

    q: Float[Tensor, "N H Q D"]
    k: Float[Tensor, "N H K D"]
    v: Float[Tensor, "N H K D"]
    mask: Tensor | None = None
    """Broadcast to (N, H, Q, K): added to the logits, or True where a key may be seen."""


def token_score(kind: Score, operands: Operands, scale: float | None, own: slice) -> Float[Tensor, "N T"]:
    """s of the tokens that are the keys `own` of an attention, divided by its L2 norm over them (ToCa: s1; DuCa: V-caching)."""
    q, k, v, mask = operands
    received = attention_received(q, k, mask, scale) if kind == "attention" else (1 - v.float().norm(dim=-1)).sum(1)
    return normalize(received[:, own], p=2.0, dim=-1)


def attention_received(
    q: Float[Tensor, "N H Q D"], k: Float[Tensor, "N H K D"], mask: Tensor | None, scale: float | None
) -> Float[Tensor, "N K"]:
    """sum_i mean_h softmax(q k^T scale + mask)_hij: column sums of the mean attention map, in float32, a part of the rows at a time."""
    scale = 1 / sqrt(q.shape[-1]) if scale is None else scale
    keys = k.float().contiguous().transpose(-2, -1)
    total: Tensor | None = None
    for start in range(0, q.shape[-2], QUERIES):
        logits = q[..., start : start + QUERIES, :].float().contiguous() @ keys * scale
        if mask is not None:
            rows = mask[..., start : start + QUERIES, :] if mask.dim() > 1 and mask.shape[-2] > 1 else mask
            logits = logits.masked_fill(~rows, -inf) if rows.dtype == torch.bool else logits + rows
        part = logits.softmax(-1).mean(1).sum(-2)
        total = part if total is None else total + part
    assert total is not None
    return total


PRIME = 2**31 - 1


def random_score(tokens: int, layer: int, clock: Clock) -> Float[Tensor, " T"]:
    """Numbers in [0, 1] from a token's place, its layer and the step: x -> x^2 + c modulo a prime, twice, in whole numbers.

    No generator has a state, and every backend draws the same.
    """
    step = (clock.n * 4096 + clock.k).long()  # another number at each step of a generation
    x = torch.arange(tokens, device=clock.k.device) * 40503 + step * 30011 + (layer * 69069 + 1)
    for c in (12345, 67890):
        x = x % PRIME
        x = (x * x + c) % PRIME
    return x.float() / PRIME


def with_bonus(score: Float[Tensor, "N T"], bonus: float, grid: Grid) -> Float[Tensor, "N T"]:
    """The score with `bonus` times itself added where it is the highest of its 2x2 cell."""
    rows, columns = grid
    cells = score.reshape(len(score), -1, rows // 2, 2, columns // 2, 2).transpose(3, 4)
    flat = cells.flatten(-2)
    best, where = flat.max(-1, keepdim=True)
    raised = flat + torch.zeros_like(flat).scatter(-1, where, 1.0) * best * bonus
    return raised.reshape(cells.shape).transpose(3, 4).reshape(score.shape)


def take(X: Float[Tensor, "N T *D"], indices: Int[Tensor, "N k"]) -> Float[Tensor, "N k *D"]:
    """The rows of the chosen tokens."""
    return X[_samples(indices), indices]


def put(X: Float[Tensor, "N T *D"], indices: Int[Tensor, "N k"], rows: Float[Tensor, "N k *D"]) -> Float[Tensor, "N T *D"]:
    """X with other rows for the chosen tokens."""
    return X.index_put((_samples(indices), indices), rows)


def _samples(indices: Int[Tensor, "N k"]) -> Int[Tensor, "N 1"]:
    return torch.arange(len(indices), device=indices.device).unsqueeze(-1)


def renewed(estimator: Estimator, old: State, indices: Int[Tensor, "N k"], I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
    """The state of a site with what its chosen tokens, whose rows I and O are, would leave."""
    rows = estimator.refresh({name: take(X, indices) for name, X in old.items()}, I, O, clock)
    return {name: put(old[name], indices, row) for name, row in rows.items()}


def aged(age: Float[Tensor, "N T"], indices: Int[Tensor, "N k"] | None = None) -> Float[Tensor, "N T"]:
    """The age of every token after a PARTIAL step: 0 for the computed ones, one more for the others."""
    older = age + 1
    return older if indices is None else put(older, indices, torch.zeros_like(indices, dtype=age.dtype))


def check_tokens(estimator: Estimator, phases: Iterable[PhaseName], tokens: Tokens | None) -> None:
    """Raise ValueError for PARTIAL phases that `tokens` does not speak of, and for an estimator whose state is more than the output."""
    partial = [phase for phase in phases if is_partial(phase)]
    own = () if tokens is None else tokens.phases
    if unknown := [phase for phase in partial if phase not in own]:
        raise ValueError(f"tokens: {', '.join(unknown)} of the schedule is none of its phases: {', '.join(own) or 'tokens is None'}")
    if partial and estimator.orders:
        raise ValueError(f"tokens: PARTIAL steps put computed tokens among those of the last output, no forecast, got {estimator!r}")
