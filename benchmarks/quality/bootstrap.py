"""Bootstrap confidence intervals of paired comparisons: the same seeds by two methods."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import bootstrap
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
    means = bootstrap(
        (logs.numpy(),), np.mean, n_resamples=resamples, confidence_level=covered, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Ratio(float(logs.mean().exp()), math.exp(means.low), math.exp(means.high))
