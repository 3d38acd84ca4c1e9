"""Frechet distance of two sets of features: FID with the features of a classifier of our own in the place of Inception's.

d^2 = ||m_a - m_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), means m and covariances S (Heusel et al. 2017, arXiv 1706.08500). The estimate
from N samples is biased upwards, the more so the fewer samples and the more features there are: compare values of equal N alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Mean and covariance (divided by N - 1) of a set of features, in float64."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]


def moments(features: Float[Tensor, "N D"]) -> Moments:
    """The moments of at least two rows; ValueError for fewer."""
    if len(features) < 2:
        raise ValueError(f"moments: a covariance needs at least 2 rows, got {len(features)}")
    x = features.double()
    mean = x.mean(0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (len(x) - 1))


def frechet(a: Moments, b: Moments) -> float:
    """The squared Frechet distance d^2, at least 0.

    tr (S_a S_b)^(1/2) is the sum of the roots of the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2), which are those of S_a S_b.
    """
    root = square_root(a.covariance)
    mixed = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return max(0.0, float(apart + a.covariance.trace() + b.covariance.trace() - 2 * mixed))


def square_root(S: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """The root of a symmetric positive semidefinite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(S)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
