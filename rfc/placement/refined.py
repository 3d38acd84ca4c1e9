"""Weights of a list, refined by the samples that are drawn with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.base import MOST_ORDER
from rfc.estimators.linear_prediction import LinearPrediction
from rfc.method import Method
from rfc.placement.weighted import Weighted
from rfc.schedules.base import checked_count

Draw = Callable[[Method], Float[Tensor, "N ..."]]
"""Draws the samples of fixed seeds by a method."""

WORTH = 1.2
"""Times the error of the nearest beginning, up to which the nearest of another granularity is refined as well."""

DAMPINGS = (1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Of the latest damping, that are tried in a round."""


def refined(
    methods: Method | Sequence[Method],
    draw: Draw,
    reference: Float[Tensor, "N ..."],
    *,
    rounds: int = 2,
    order: int | None = None,
    delta: float = 1e-3,
    report: Callable[[str], None] = lambda what: None,
) -> Method:
    """The linear prediction whose samples are nearest to `reference`: weights that are fitted where they act, in whole generations.

    `methods` have lists of full steps with weights (`rfc.fitted`), where the search begins: with the nearest, and with the nearest of
    another granularity if that is almost as near; after the first round only the nearest goes on. What it began with is returned if
    nothing is nearer.
    From each full step to the next, what is handed on moves by one more combination of the `order` latest changes between full steps
    (None: of all of them, at most 16), the first output counting as one: a non-stationary solver on the sampler's own steps
    (arXiv 2403.01329, which trains one by backpropagation). Each round moves every number by `delta` (larger than the model's rounding),
    draws, and takes the best of five damped Gauss-Newton steps (Levenberg and Marquardt): for n full steps about n^2 / 2 + 5 draws.
    No gradient is asked of the model. Judge the result by other seeds: these it knows.

    Raises ValueError for a method without such a list, and for samples of another shape than the reference or that are no numbers.
    """
    checked_count("refined", "rounds", rounds, 1)
    starts = [_Search(_start(method, order), draw, reference, delta) for method in _as_sequence(methods)]
    nearest: dict[str | None, _Search] = {}
    for search in starts:
        known = nearest.setdefault(search.start.granularity, search)
        if search.cost < known.cost:
            nearest[search.start.granularity] = search
    least = min(search.cost for search in nearest.values())
    tried = [search for search in nearest.values() if search.cost <= WORTH**2 * least]
    for round in range(rounds):
        has_moved = [search.moved(f"refining, round {round + 1} of {rounds}", report) for search in tried]
        tried = [min(tried, key=lambda search: search.cost)]
        if not any(has_moved):
            break
    return tried[0].method(None)


def _as_sequence(methods: Method | Sequence[Method]) -> Sequence[Method]:
    if isinstance(methods, Method):
        return [methods]
    if not methods:
        raise ValueError("refined: pass at least one method to begin with")
    return methods


def _start(method: Method, order: int | None) -> Method:
    """The method with weights for more changes, which are zero."""
    schedule, estimator = method.schedule, method.estimator
    if not isinstance(schedule, Weighted) or not isinstance(estimator, LinearPrediction):
        raise ValueError(f"refined: methods must have weights, as those of rfc.fitted do; got {method}")
    order = max(estimator.order, min(schedule.nfc, MOST_ORDER) if order is None else order)
    fill = (0.0,) * (order - estimator.order)
    weights = [(*row, *fill) for row in schedule.weights]
    return replace(method, estimator=LinearPrediction(order=order), schedule=replace(schedule, weights=weights), name="refined")


class _Search:
    """The numbers that are searched: for each interval between full steps, one for each change that is known there."""

    def __init__(self, start: Method, draw: Draw, reference: Float[Tensor, "N ..."], delta: float) -> None:
        assert isinstance(start.schedule, Weighted)
        self.start, self.draw, self.delta = start, draw, delta
        self.schedule = start.schedule
        self.reference = reference.double()
        full_steps = self.schedule.full_steps
        ends = (*full_steps[1:], self.schedule.num_steps)
        self.numbers = [
            (range(max(begin, 1), end), change)  # a first step has nothing to be handed on but its output
            for number, (begin, end) in enumerate(zip(full_steps, ends, strict=True))
            for change in range(min(number + 1, self.schedule.num_weights))
            if end > 1
        ]
        self.x = torch.zeros(len(self.numbers), dtype=torch.float64)
        """The nearest so far."""
        self.damping = 1e-3
        self.residual = self.residual_at(self.x)
        if not self.residual.isfinite().all():
            raise ValueError(f"refined: the samples of {start} are no numbers; begin with another method")

    @property
    def cost(self) -> float:
        """Sum of the squares of the samples' relative errors."""
        return float(self.residual.square().sum())

    def moved(self, label: str, report: Callable[[str], None]) -> bool:
        """One round: whether one of the damped Gauss-Newton steps brings the samples nearer, and is taken."""
        columns = []
        for index in range(len(self.x)):
            report(f"{label}: {index + 1} of {len(self.x)}")
            moved = self.x.clone()
            moved[index] += self.delta
            columns.append((self.residual_at(moved) - self.residual) / self.delta)
        jacobian = torch.stack(columns, 1)
        if not jacobian.isfinite().all():
            raise ValueError(f"refined: weights moved by {self.delta:g} draw samples that are no numbers; pass a smaller delta")
        normal, slope = jacobian.T @ jacobian, jacobian.T @ self.residual
        scale = normal.diagonal().clamp(min=1e-12 * float(normal.diagonal().max()) + 1e-300).diag()
        dampings = [self.damping * each for each in DAMPINGS]
        tried = [(damping, self.x - torch.linalg.solve(normal + damping * scale, slope)) for damping in dampings]
        found = [(self.residual_at(x), damping, x) for damping, x in tried]
        residual, damping, x = min(found, key=lambda each: float(each[0].square().sum().nan_to_num(nan=torch.inf)))
        if not float(residual.square().sum()) < self.cost:
            return False
        self.residual, self.damping, self.x = residual, damping, x
        return True

    def residual_at(self, x: Float[Tensor, " P"]) -> Float[Tensor, " R"]:
        """How far the samples are off, in norms of the reference's."""
        samples = self.draw(self.method(x))
        if samples.shape != self.reference.shape:
            shape = tuple(self.reference.shape)
            raise ValueError(f"refined: draw must return samples of the reference's shape {shape}, got {tuple(samples.shape)}")
        off, norms = (samples.double() - self.reference).flatten(1), self.reference.flatten(1).norm(dim=1, keepdim=True)
        return torch.flatten(off / norms.clamp(min=1e-30))

    def method(self, x: Float[Tensor, " P"] | None) -> Method:
        """The method with these numbers added to the weights of its steps; None: with the nearest."""
        rows: list[list[float]] = [list(row) for row in self.schedule.weights]
        for value, (steps, change) in zip((self.x if x is None else x).tolist(), self.numbers, strict=True):
            for step in steps:
                rows[step][change] += value
        return replace(self.start, schedule=replace(self.schedule, weights=rows))
