"""Full steps of a list, with the weights of a linear prediction for each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.placement.nearest import full_steps_at
from rfc.schedules.base import NoiseLevels, Numbers, Schedule
from rfc.schedules.fixed import Placed

CLOSE = 1e-2
"""Of two noise levels lambda: between them the weights of one serve the other."""


@dataclass(frozen=True, kw_only=True)
class Weighted(Placed):
    """A list for generations of `num_steps` calls whose estimator is `rfc.LinearPrediction`.

    `weights`: c_1 .. c_m for each step, full ones too; those of the first do not count. Where `lambdas`, log(alpha / sigma) at each call,
    and `end`, after the last (None: no noise is left), say which levels they were fitted at, a generation at others has LogSNR's full
    steps and Newton's polynomial instead (`unfitted`), as many full steps in relation, and a transformed model warns.
    """

    weights: Sequence[Sequence[float]] = field(repr=False)
    lambdas: Sequence[float] | None = field(default=None, repr=False)
    end: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = tuple(tuple(row) if isinstance(row, Iterable) else () for row in self.weights) if isinstance(self.weights, Iterable) else ()
        if len(rows) != self.num_steps or len({len(row) for row in rows}) != 1 or len(rows[0]) < 1:
            raise ValueError(
                f"Weighted: weights must have a row for each of the {self.num_steps} steps, all with the weights c_1 .. c_m, "
                f"got rows of {sorted({len(row) for row in rows})} numbers for {len(rows)} steps"
            )
        for step, row in enumerate(rows):
            if any(isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) for value in row):
                raise ValueError(f"Weighted: weights of step {step} must be finite numbers, got {row}")
        object.__setattr__(self, "weights", rows)
        if self.lambdas is not None:
            lambdas = tuple(self.lambdas) if isinstance(self.lambdas, Iterable) else ()
            if len(lambdas) != self.num_steps or any(
                isinstance(v, bool) or not isinstance(v, int | float) or math.isnan(v) for v in lambdas
            ):
                raise ValueError(f"Weighted: lambdas must be {self.num_steps} numbers, one for each call, got {self.lambdas!r}")
            object.__setattr__(self, "lambdas", lambdas)

    @property
    def num_weights(self) -> int:
        return len(self.weights[0])

    @property
    def nfc(self) -> int:
        return len(self.full_steps)

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (Weighted, *super().in_graph[1:], self.num_weights)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # asked for several times a step
        return hash((self.full_steps, self.num_steps, self.weights, self.lambdas, self.end))

    def numbers(self) -> dict[str, Tensor]:
        table = torch.zeros(self.TABLE + 1, self.num_weights)  # steps beyond the list have the last full step's output
        table[: len(self.weights)] = torch.tensor(self.weights, dtype=torch.float32)
        steps, full_steps = torch.arange(self.TABLE + 1), torch.tensor(self.full_steps)
        before = (torch.searchsorted(full_steps, steps) - 1).clamp(min=0)
        return {**super().numbers(), "weights": table, "since": (steps - full_steps[before]).float()}

    @staticmethod
    def weights_at(numbers: Numbers, step: Tensor, k: Tensor) -> Float[Tensor, " W"]:
        """Zero where the last full step is another than the list has, as after a step that was computed for another reason."""
        weights, since = (
            numbers[name].index_select(0, step.clamp(0, Placed.TABLE).long().reshape(1)).reshape(-1) for name in ("weights", "since")
        )
        return torch.where(since == k, weights, torch.zeros_like(weights))

    def fits(self, num_steps: int, levels: NoiseLevels | None) -> bool:
        """Whether the weights were fitted at these levels, or at none in particular."""
        if num_steps != self.num_steps or levels is None or self.lambdas is None:
            return num_steps == self.num_steps
        return all(a == b or abs(a - b) <= CLOSE for a, b in zip(self.lambdas, levels.lambdas, strict=True))

    def bound(self, num_steps: int, levels: NoiseLevels | None = None) -> Schedule:
        if self.fits(num_steps, levels) or levels is None:
            return self
        return replace(unfitted(levels, max(1, round(self.nfc * num_steps / self.num_steps)), self.num_weights), unit=self._clock)

    def exercised(self) -> Weighted:
        row = (0.5,) * self.num_weights
        return _ForWarmUp(full_steps=(0, 2), num_steps=4, unit=self.unit, weights=(row,) * 4)


class _ForWarmUp(Weighted):
    """The same on the programs of `Weighted` for generations of any length."""

    @property
    def is_placed(self) -> bool:
        return False


def unfitted(levels: NoiseLevels, nfc: int, num_weights: int, *, damping: float = 0.5) -> Weighted:
    """LogSNR's full steps with Newton's polynomial of order 2 at most, damped, as weights; full steps are handed on as they are."""
    full_steps = full_steps_at(levels, nfc)
    placed = Placed(full_steps=full_steps, num_steps=len(levels.lambdas), unit="interval")
    times = placed.numbers()["times"].double().tolist()
    return polynomial(levels, full_steps, times, min(2, num_weights), num_weights=num_weights, damping=damping)


def polynomial(
    levels: NoiseLevels, full_steps: Sequence[int], times: Sequence[float], order: int, *, num_weights: int, damping: float = 1.0
) -> Weighted:
    """A list with Newton's polynomial through the latest `order` + 1 full steps as weights; `times`: its clock at each step."""
    rows = []
    for step in range(len(levels.lambdas)):
        past = [] if step in full_steps else [full for full in full_steps if full < step][-(order + 1) :][::-1]
        row = newton_weights([times[full] for full in past], times[step], damping)
        rows.append((*row, *(0.0,) * (num_weights - len(row))))
    return Weighted(full_steps=full_steps, num_steps=len(rows), weights=rows, lambdas=levels.lambdas, end=levels.end)


def newton_weights(past: Sequence[float], now: float, damping: float = 1.0) -> list[float]:
    """c_1 .. c_m of Newton's polynomial (`rfc.Newton`) through the outputs at m + 1 times, the latest first, at another time."""
    combinations = torch.eye(len(past), dtype=torch.float64)
    weights, divided, product = torch.zeros(len(past), dtype=torch.float64), list(combinations), 1.0
    for i in range(1, len(past)):
        divided = [(a - b) / (past[j] - past[j + i]) for j, (a, b) in enumerate(pairwise(divided))]
        product *= now - past[i - 1]
        weights += damping ** (i - 1) * product * divided[0]
    return [-float(weights[i:].sum()) for i in range(1, len(past))]
