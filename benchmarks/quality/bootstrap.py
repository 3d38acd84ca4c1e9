"""Bootstrap confidence intervals of paired comparisons: the same seeds by two methods."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 4000


COVERED = 0.95


class Ratio(NamedTuple):
    """A ratio with the percentile interval of its bootstrap."""

    value: float
    low: float
    high: float

    @property
    def excludes_one(self) -> bool:
        """Whether the two differ beyond the interval."""
        return self.high < 1 or self.low > 1


def ratio_of_geometric_means(
    a: Float[Tensor, " N"], b: Float[Tensor, " N"], *, resamples: int = RESAMPLES, covered: float = COVERED, seed: int = 0
) -> Ratio:
    """exp(mean_i (log a_i - log b_i)) of paired errors, and its interval when the samples i are drawn anew, with replacement (Efron 1979).

    Raises ValueError where the errors are not paired, or one is 0.
    """
    if a.shape != b.shape or a.dim() != 1 or not len(a):
        raise ValueError(f"ratio_of_geometric_means: expected two equally long vectors, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    logs = a.double().log() - b.double().log()
    if not logs.isfinite().all():
        raise ValueError("ratio_of_geometric_means: errors must be finite and above 0")
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(logs), (resamples, len(logs)), generator=draw)
    means = logs[chosen].mean(1)
    tail = (1 - covered) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).exp().tolist()
    return Ratio(float(logs.mean().exp()), low, high)
