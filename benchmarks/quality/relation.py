"""How a site's output moves with its input, on a trajectory of full computation: what relational feature caching rests on.

With Delta_k X = X(t-k) - X(t), t the latest full step, and Delta_N X = X(t) - X(t+N), over all skipped steps, sites and samples:

* cosines of Delta_k X and Delta_N X, of the input and of the output, and the correlation of the two;
* s_k = ||Delta_k O|| / ||Delta_k I||: its relative standard deviation over the distances k within an interval and over the full steps t,
  and s_N / s_k, by which RFE's forecast is too long or too short;
* kappa N/k, RFE's coefficient against Taylor's, and the best one, <Delta_k O, Delta_N O> / ||Delta_N O||^2 (N/k);
* the correlation of ||E_I|| and ||E_O||, the relative errors of Taylor's forecasts of order 1 of input and output (RFC, figure 2b).

Correlations are Pearson's over steps and samples of one site; "mean" and "lowest" are over the sites.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.quality.trajectory import Trajectory


class Moves(NamedTuple):
    """Moves of I or O of one site: a row for each skipped step and sample."""

    length: Float[Tensor, " R"]
    """||Delta_k X||."""
    before: Float[Tensor, " R"]
    """||Delta_N X||."""
    product: Float[Tensor, " R"]
    """<Delta_k X, Delta_N X>."""
    error: Float[Tensor, " R"]
    """||X(t-k) - Taylor's forecast|| / ||X(t-k)||."""

    @property
    def cosine(self) -> Float[Tensor, " R"]:
        return self.product / (self.length * self.before)


@dataclass(frozen=True)
class Relation:
    """The figures of one trajectory at one interval, each by site."""

    by_site: dict[str, list[float]]

    @staticmethod
    def merged(parts: list[Relation]) -> dict[str, dict[str, float]]:
        """Mean and lowest over the sites, of means over the trajectories."""
        merged = {}
        for name in parts[0].by_site:
            values = [statistics.fmean(at) for at in zip(*(part.by_site[name] for part in parts), strict=True)]
            merged[name] = {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}
        return merged


def relation(trajectory: Trajectory, interval: int, k: list[int]) -> Relation:
    """The figures of every site; `k` is the distance of every step, 0 where it is full."""
    skipped = [step for step, at in enumerate(k) if at and step - at - interval >= 0 and k[step - at - interval] == 0]
    distance = torch.tensor([float(k[step]) for step in skipped])
    figures: dict[str, list[float]] = {}
    for site in range(len(trajectory.sites)):
        I, O = (_moves(steps, skipped, k, interval) for steps in (trajectory.inputs(site), trajectory.outputs(site)))
        at = distance.repeat_interleave(len(I.length) // len(skipped))
        s_k, s_N = O.length / I.length, O.before / I.before
        for name, value in {
            "cosine_input": float(I.cosine.mean()),
            "cosine_output": float(O.cosine.mean()),
            "cosine_correlation": correlation(I.cosine, O.cosine),
            "s_rsd_within_interval": _spread(s_k, len(skipped), k, skipped, by_interval=True),
            "s_rsd_over_steps": _spread(s_k, len(skipped), k, skipped, by_interval=False),
            "s_N_over_s_k": float((s_N / s_k).mean()),
            "kappa_over_taylor": float((I.length / I.before * interval / at).mean()),
            "best_over_taylor": float((O.product / O.before.square() * interval / at).mean()),
            "error_correlation": correlation(I.error, O.error),
        }.items():
            figures.setdefault(name, []).append(value)
    return Relation(figures)


def _moves(steps: list[Tensor], skipped: list[int], k: list[int], interval: int) -> Moves:
    """The moves of one tensor along its trajectory."""
    parts: list[Moves] = []
    for step in skipped:
        now, anchor, earlier = (steps[at].float().flatten(1) for at in (step, step - k[step], step - k[step] - interval))
        move, before = now - anchor, anchor - earlier
        error = (move - k[step] / interval * before).norm(dim=1) / now.norm(dim=1)
        parts.append(Moves(move.norm(dim=1), before.norm(dim=1), (move * before).sum(1), error))
    return Moves(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def _spread(s: Float[Tensor, " R"], count: int, k: list[int], skipped: list[int], *, by_interval: bool) -> float:
    """Relative standard deviation of s over the distances after one full step, or over the full steps at one distance; mean of these."""
    table = s.reshape(count, -1)
    key: Callable[[int], int] = (lambda step: step - k[step]) if by_interval else (lambda step: k[step])
    groups: dict[int, list[int]] = {}
    for row, step in enumerate(skipped):
        groups.setdefault(key(step), []).append(row)
    spreads = [table[rows].std(0) / table[rows].mean(0) for rows in groups.values() if len(rows) > 1]
    return float(torch.cat(spreads).mean()) if spreads else 0.0


def correlation(a: Float[Tensor, " R"], b: Float[Tensor, " R"]) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    lengths = a.norm() * b.norm()
    return float((a @ b) / lengths) if lengths > 0 else 0.0
