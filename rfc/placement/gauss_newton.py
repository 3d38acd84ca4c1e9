"""Damped Gauss-Newton steps (Levenberg and Marquardt) for samples that count differently."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class System:
    """r + J d for the samples, each of which counts: squares of errors become their logarithms."""

    def __init__(self, jacobian: Float[Tensor, "N R P"], residual: Float[Tensor, "N R"], counts: Float[Tensor, " N"]) -> None:
        self.jacobian, self.residual = jacobian, residual
        samples = [(count * each.double(), count * off) for count, each, off in zip(counts, jacobian, residual, strict=True)]
        self.normal = sum((each.T @ each for each, _ in samples), torch.zeros(1, dtype=torch.float64))
        self.slope = sum((each.T @ off for each, off in samples), torch.zeros(1, dtype=torch.float64))
        self.scale = self.normal.diagonal().clamp(min=1e-12 * float(self.normal.diagonal().max()) + 1e-300)

    def damped(self, damping: float) -> Damped:
        return Damped(self.normal, self.slope, self.normal + damping * self.scale.diag())

    def learn(self, moved: Float[Tensor, " P"], residual: Float[Tensor, "N R"]) -> None:
        """Make J tell of a step what came of it (Broyden's update)."""
        off = (residual - self.residual).float() - self.jacobian @ moved
        along = (self.scale * moved).float()
        self.jacobian += off[..., None] * (along / (along @ moved))


class Damped(NamedTuple):
    """min |r + J d|^2 + damping |d|^2, each number in the measure of what it changes."""

    normal: Float[Tensor, "P P"]
    slope: Float[Tensor, " P"]
    matrix: Float[Tensor, "P P"]

    def solved(self, last: Float[Tensor, " L"] | None = None) -> Float[Tensor, " F"]:
        """All numbers, or those before `last` if these are given."""
        free = len(self.slope) - (0 if last is None else len(last))
        slope = self.slope if last is None else self.slope[:free] + self.normal[:free, free:] @ last
        numbers: Tensor = -torch.linalg.solve(self.matrix[:free, :free], slope)
        return numbers
