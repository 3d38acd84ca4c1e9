"""Full steps and weights of a list, refined by the samples that are drawn with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.base import MOST_ORDER
from rfc.estimators.linear_prediction import LinearPrediction
from rfc.method import Method
from rfc.placement.gauss_newton import Damped, System
from rfc.placement.moved_steps import Curve, in_order, intervals
from rfc.placement.weighted import Weighted
from rfc.schedules.base import checked_count

Draw = Callable[[Method], Float[Tensor, "N ..."]]
"""Draws the samples of fixed seeds by a method."""

WORTH = 2.0
"""Times the error of the nearest beginning, up to which the nearest of another granularity is refined as well: what began further off may
end nearer, as behind a norm of the model's a forecast cannot grow, and the model's prediction can."""

DAMPINGS = (1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Of the latest damping, that are tried in a round."""

STEPS = 3
"""Taken in a round at most: what came of one says more of the next than the numbers that were moved."""

LEAST = 0.1
"""Of the typical error: samples that are nearer count no more than one that is as near."""


def refined(
    methods: Method | Sequence[Method],
    draw: Draw,
    reference: Float[Tensor, "N ..."],
    *,
    rounds: int = 2,
    order: int | None = None,
    moves: bool = True,
    delta: float = 1e-3,
    report: Callable[[str], None] = lambda what: None,
) -> Method:
    """The linear prediction whose samples are nearest to `reference`: full steps and weights, fitted where they act, in whole generations.

    Nearest is the least geometric mean of ||x - x_ref|| / ||x_ref|| over the samples.
    `methods` have lists of full steps with weights (`rfc.fitted`), where the search begins: with the nearest, and with the nearest of
    another granularity if that is not twice as far; after the first round only the nearest goes on. What it began with is returned if
    nothing is nearer.
    From each full step to the next, what is handed on moves by one more combination of the `order` latest changes between full steps
    (None: of all of them, at most 16), the first output counting as one: a non-stationary solver on the sampler's own steps
    (arXiv 2403.01329, which trains one by backpropagation). With `moves` full steps move as well, between their neighbours.
    Each round moves every number by `delta` (larger than the model's rounding) and every full step but the first to the next, draws, and
    takes the best of five damped Gauss-Newton steps, up to three times (Levenberg and Marquardt, Broyden; a sample counts by the inverse of
    its error): for n full steps about n^2 / 2 + 2 n + 20 draws. No gradient is asked of the model. Judge the result by other
    seeds: those it draws fit better, the fewer they are (with n = 8, 44 of 8 x 8 pixels by 5 %, 12 by a third).

    Raises ValueError for a method without such a list, and for samples of another shape than the reference or that are no numbers by any
    beginning.
    """
    checked_count("refined", "rounds", rounds, 1)
    if order is not None:
        checked_count("refined", "order", order, 1)
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < math.inf:
        raise ValueError(f"refined: delta must be a number above 0, got {delta!r}")
    begun = [_Search(_start(method, order), draw, reference, delta, moves) for method in _as_sequence(methods)]
    starts = [search for search in begun if search.residual.isfinite().all()]
    if not starts:
        raise ValueError(f"refined: the samples of {begun[0].start} are no numbers; begin with another method")
    nearest: dict[str | None, _Search] = {}
    for search in starts:
        known = nearest.setdefault(search.start.granularity, search)
        if search.error < known.error:
            nearest[search.start.granularity] = search
    least = min(search.error for search in nearest.values())
    tried = [search for search in nearest.values() if search.error <= WORTH * least]
    for round in range(rounds):
        has_moved = [search.moved(f"refining, round {round + 1} of {rounds}", report) for search in tried]
        tried = [min(tried, key=lambda search: search.error)]
        if not any(has_moved):
            break
    return tried[0].method(tried[0].at)


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


class _Point:
    """What is searched: where the full steps are, and what is added to the weights of each interval between them."""

    def __init__(self, full_steps: Sequence[int], added: Float[Tensor, "K W"]) -> None:
        self.full_steps, self.added = tuple(full_steps), added

    def weight_moved(self, interval: int, change: int, by: float) -> _Point:
        added = self.added.clone()
        added[interval, change] += by
        return _Point(self.full_steps, added)

    def step_moved(self, number: int, by: int) -> _Point:
        steps = list(self.full_steps)
        steps[number] += by
        return _Point(steps, self.added)


class _Search:
    """The nearest so far of one beginning."""

    def __init__(self, start: Method, draw: Draw, reference: Float[Tensor, "N ..."], delta: float, moves: bool) -> None:
        assert isinstance(start.schedule, Weighted)
        self.start, self.draw, self.delta, self.moves = start, draw, delta, moves
        self.schedule = start.schedule
        self.reference = reference.double()
        self.curves = [Curve(self.schedule, a, b) for a, b in intervals(self.schedule.full_steps, self.schedule.num_steps)]
        self.at = _Point(self.schedule.full_steps, torch.zeros(self.schedule.nfc, self.schedule.num_weights, dtype=torch.float64))
        self.damping = 1e-2
        self.residual = self.residual_at(self.at)

    @property
    def error(self) -> float:
        return float(_errors(self.residual).log().mean().exp())

    def moved(self, label: str, report: Callable[[str], None]) -> bool:
        """One round: whether one of the damped Gauss-Newton steps brings the samples nearer; as many are taken as do, at most `STEPS`."""
        numbers = _Numbers(self._weights(), self._steps() if self.moves else [])
        tried = [
            *((self.at.weight_moved(interval, change, self.delta), self.delta) for interval, change in numbers.weights),
            *((self.at.step_moved(number, by), float(by)) for number, by in numbers.steps),
        ]
        jacobian = torch.empty(*self.residual.shape, len(tried))
        for number, (point, by) in enumerate(tried):
            report(f"{label}: {number + 1} of {len(tried)}")
            jacobian[..., number] = (self.residual_at(point) - self.residual) / by
        if not jacobian.isfinite().all():
            raise ValueError(f"refined: weights moved by {self.delta:g} draw samples that are no numbers; pass a smaller delta")
        for taken in range(STEPS):
            errors = _errors(self.residual)
            system = System(jacobian, self.residual, 1 / errors.clamp(min=LEAST * float(errors.median())))
            dampings = [self.damping * each for each in DAMPINGS]
            points = [(point, damping) for damping in dampings for point in self._stepped(system.damped(damping), numbers)]
            found = [(self.residual_at(point), point, damping) for point, damping in points]
            residual, point, damping = min(found, key=lambda each: float(_errors(each[0]).log().mean().nan_to_num(nan=torch.inf)))
            if not float(_errors(residual).log().mean().exp()) < self.error:
                return taken > 0
            system.learn(numbers.between(self.at, point), residual)
            self.residual, self.at, self.damping = residual, point, damping
        return True

    def _weights(self) -> list[tuple[int, int]]:
        """The numbers that act: a first step has nothing to be handed on but its output."""
        ends = [end for _, end in intervals(self.at.full_steps, self.schedule.num_steps)]
        return [(k, c) for k, end in enumerate(ends) for c in range(min(k + 1, self.schedule.num_weights)) if end > 1]

    def _steps(self) -> list[tuple[int, int]]:
        """Full steps that have room, and the way they go."""
        found = []
        for number, step in list(enumerate(self.at.full_steps))[1:]:
            room = [by for by in (1, -1) if 0 < step + by < self.schedule.num_steps and step + by not in self.at.full_steps]
            found += [(number, by) for by in room[:1]]
        return found

    def _stepped(self, damped: Damped, numbers: _Numbers) -> Iterator[_Point]:
        """A Gauss-Newton step: the weights that are best where the full steps are, and with those that it moves, to whole steps."""
        wanted = list(self.at.full_steps)
        for (number, _), by in zip(numbers.steps, damped.solved()[len(numbers.weights) :].tolist(), strict=True):
            wanted[number] += round(by)
        for full_steps in dict.fromkeys((self.at.full_steps, in_order(wanted, self.schedule.num_steps))):
            by = torch.tensor([full_steps[number] - self.at.full_steps[number] for number, _ in numbers.steps], dtype=torch.float64)
            added = self.at.added.clone()
            for (interval, change), value in zip(numbers.weights, damped.solved(by).tolist(), strict=True):
                added[interval, change] += value
            yield _Point(full_steps, added)

    def residual_at(self, point: _Point) -> Float[Tensor, "N R"]:
        """How far the samples are off, in norms of the reference's."""
        samples = self.draw(self.method(point))
        if samples.shape != self.reference.shape:
            shape = tuple(self.reference.shape)
            raise ValueError(f"refined: draw must return samples of the reference's shape {shape}, got {tuple(samples.shape)}")
        off, norms = (samples.double() - self.reference).flatten(1), self.reference.flatten(1).norm(dim=1, keepdim=True)
        relative: Tensor = off / norms.clamp(min=1e-30)
        return relative

    def method(self, point: _Point) -> Method:
        """The list at a point."""
        rows = [list(self.schedule.weights[0])] * self.schedule.num_steps
        for number, (begin, end) in enumerate(intervals(point.full_steps, self.schedule.num_steps)):
            for step in range(max(begin, 1), end):
                rows[step] = (self.curves[number].at((step - begin) / (end - begin)) + point.added[number].numpy()).tolist()
        return replace(self.start, schedule=replace(self.schedule, full_steps=point.full_steps, weights=rows))


class _Numbers(NamedTuple):
    """What a round moves."""

    weights: list[tuple[int, int]]
    """Interval and change."""
    steps: list[tuple[int, int]]
    """Number of the full step, and the way that it was tried."""

    def between(self, one: _Point, other: _Point) -> Float[Tensor, " P"]:
        """How far they moved."""
        added = [float(other.added[number] - one.added[number]) for number in self.weights]
        return torch.tensor([*added, *(float(other.full_steps[number] - one.full_steps[number]) for number, _ in self.steps)])


def _errors(residual: Float[Tensor, "N R"]) -> Float[Tensor, " N"]:
    errors: Tensor = residual.norm(dim=1).clamp(min=1e-12)
    return errors
