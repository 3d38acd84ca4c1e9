"""Full steps and weights of a linear prediction, fitted to one generation that was computed in full.

All that is needed of the recorded outputs is their Gram matrix K, K_ij = <O_i, O_j> / size: an error of a forecast is a combination
e' O of them, with the squared length e' K e.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.linear_prediction import LinearPrediction
from rfc.method import Method
from rfc.placement.base import check_nfc
from rfc.placement.nearest import full_steps_at, turned
from rfc.placement.weighted import Weighted
from rfc.schedules.base import NoiseLevels

RIDGE = 1e-6
"""Of the mean square change between full steps: weights that it holds back stay small where changes are alike."""

ROUNDS = 20
"""Of the search: each moves every full step once."""


class Recorded(NamedTuple):
    """What one generation in full computation left: at its levels, by its sampler."""

    gram: Float[Tensor, "N N"]
    """Of the outputs of all steps, float64, summed over sites and samples."""
    gains: Sequence[float]
    """What the sampler multiplies each output by (`rfc.placement.output_gains`)."""
    levels: NoiseLevels
    predictions: Float[Tensor, "N N"] | None = None
    """The Gram matrix of what the model returned, in the place of its blocks."""


def fitted(
    recorded: Recorded,
    nfc: int,
    *,
    order: int = 2,
    corrections: float = 1.0,
    full_steps: Sequence[int] | None = None,
    granularity: Literal["stack", "output", "prediction"] = "stack",
) -> Method:
    """The linear prediction of least error in the last sample, as the record foretells it, with `nfc` full steps. Not in the papers.

    Errors of the steps between two full ones add up in the sample, each times its gain; the full step takes back what its own error
    tells of them (`rfc.LinearPrediction`). `corrections` scales that: 1 is the least squares solution on the record, where the model's
    outputs do not feel the errors of the samples, so what is best lies between 0 and 1 and is to be measured. The full steps are those at
    which the sum of what is left, all taken back, is least, whatever `corrections` is. What the sampler makes of an error on its way to
    the end, the model undoes in part, so each sum counts as the angle that the sampler turns the sample by where it ends (`rfc.LogSNR`),
    not as its gain there. `full_steps`: those, in the place of the best ones. `granularity`: what one forecast stands for.
    """
    count = len(recorded.levels.lambdas)
    check_nfc("fitted", nfc, count)
    gram = recorded.predictions if granularity == "prediction" else recorded.gram
    if gram is None:
        raise ValueError("fitted: the record has no predictions; expected one with `predictions`, or another granularity")
    fit = _Fit(recorded._replace(gram=gram), turned(recorded.levels), order, corrections)
    steps = fit.moved(full_steps_at(recorded.levels, nfc)) if full_steps is None else tuple(full_steps)
    lambdas, end, _ = recorded.levels
    schedule = Weighted(full_steps=steps, num_steps=count, weights=fit.rows(steps), lambdas=lambdas, end=end)
    return Method(estimator=LinearPrediction(order=order + 1), schedule=schedule, default_granularity=granularity, name="fitted")


class _Interval(NamedTuple):
    """From one full step to the next."""

    coefficients: Float[Tensor, "J M"]
    """c_1 .. c_m of the skipped steps, and of the full step that ends them."""
    correction: float
    cost: float
    """Square of the error that it leaves in the sample."""


class _Fit:
    """Weights and errors of lists of full steps."""

    def __init__(self, recorded: Recorded, angles: Float[Tensor, " N"], order: int, corrections: float) -> None:
        self.gram = recorded.gram.double()
        self.gains = torch.tensor(recorded.gains, dtype=torch.float64)
        self.angles = angles
        self.order, self.corrections = order, corrections
        self.known: dict[tuple[tuple[int, ...], int], _Interval] = {}

    def interval(self, past: tuple[int, ...], until: int) -> _Interval:
        """The steps between the full ones `past`, the latest first, and `until`; the number of steps stands for the end."""
        if (past, until) not in self.known:
            self.known[past, until] = self._interval(past, until)
        return self.known[past, until]

    def _interval(self, past: tuple[int, ...], until: int) -> _Interval:
        last = len(self.gains)
        steps = list(range(past[0] + 1, min(until + 1, last)))
        skipped = until - past[0] - 1
        if not steps:
            return _Interval(torch.zeros(0, 0), 0.0, 0.0)
        own = [*past, *steps]
        gram = self.gram[own][:, own]
        changes = torch.zeros(len(past) - 1, len(own), dtype=torch.float64)
        for i in range(len(past) - 1):
            changes[i, i], changes[i, i + 1] = 1.0, -1.0
        errors = torch.zeros(len(steps), len(own), dtype=torch.float64)
        errors[:, 0] = -1.0
        errors[:, len(past) :] += torch.eye(len(steps), dtype=torch.float64)
        normal = changes @ gram @ changes.T
        normal += RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64) if len(normal) else 0.0
        coefficients = torch.linalg.lstsq(normal, changes @ gram @ errors.T).solution.T if len(normal) else torch.zeros(len(steps), 0)
        errors = errors - coefficients.double() @ changes
        left = self.gains[steps[:skipped]] @ errors[:skipped]
        correction = 0.0
        if skipped and until < last:
            seen = errors[skipped]
            square = float(seen @ gram @ seen) * float(self.gains[until]) ** 2
            if square > 0:
                told = float(seen @ gram @ left) * float(self.gains[until])
                correction = told / square
                left = left - correction * float(self.gains[until]) * seen
        near = slice(min(until, last - 1), until + 2)  # of two: gains of multistep samplers go up and down
        turn = float(self.angles[near].sum()) / max(float(self.gains[near].abs().sum()), 1e-30)
        return _Interval(coefficients, correction, max(float(left @ gram @ left), 0.0) * turn**2)

    def intervals(self, steps: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
        ends = [*steps[1:], len(self.gains)]
        return [(tuple(steps[max(0, i - self.order) : i + 1][::-1]), end) for i, end in enumerate(ends)]

    def cost(self, steps: Sequence[int]) -> float:
        return sum(self.interval(past, until).cost for past, until in self.intervals(steps))

    def moved(self, steps: Sequence[int]) -> tuple[int, ...]:
        """The list with its full steps moved, one at a time, for as long as the error falls."""
        best, least = list(steps), self.cost(steps)
        for _ in range(ROUNDS):
            before = least
            for i in range(1, len(best)):
                rest = best[:i] + best[i + 1 :]
                tried = (sorted([*rest, step]) for step in range(1, len(self.gains)) if step not in rest)
                cost, found = min((self.cost(each), each) for each in tried)
                if cost < least:
                    least, best = cost, found
            if least >= before * (1 - 1e-9):
                break
        return tuple(best)

    def rows(self, steps: Sequence[int]) -> list[tuple[float, ...]]:
        """The weights of every step; a full one's are g (O - O_hat), its correction times how far the forecast was off."""
        rows = [(0.0,) * (self.order + 1)] * len(self.gains)
        for past, until in self.intervals(steps):
            fit = self.interval(past, until)
            for step, coefficients in zip(range(past[0] + 1, until + 1), fit.coefficients.tolist(), strict=False):
                fill = (0.0,) * (self.order - len(coefficients))
                own = (*coefficients, *fill)
                g = self.corrections * fit.correction
                rows[step] = (*own, 0.0) if step < until else (g, *(0.0 - g * c for c in own))
        return rows
