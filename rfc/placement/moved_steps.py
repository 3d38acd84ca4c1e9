"""Lists whose full steps move: the weights between them are stretched."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rfc.placement.weighted import Weighted

Reals = NDArray[np.float64]


class Curve:
    """The weights that an interval between full steps began with, along it: between the steps that it had they are interpolated."""

    def __init__(self, schedule: Weighted, begin: int, end: int) -> None:
        self.first: Reals = np.array(schedule.weights[begin])
        self.shares: Reals = np.arange(end - begin) / (end - begin)
        self.rows: Reals = np.array([np.zeros(schedule.num_weights), *schedule.weights[begin + 1 : end]])

    def at(self, share: float) -> Reals:
        """At a share of the interval; 0 is the full step itself."""
        if share == 0:
            return self.first
        if share > self.shares[-1] > 0:
            slope = (self.rows[-1] - self.rows[-2]) / (self.shares[-1] - self.shares[-2])
            beyond: Reals = self.rows[-1] + (share - self.shares[-1]) * slope
            return beyond
        return np.array([np.interp(share, self.shares, values) for values in self.rows.T])


def intervals(full_steps: Sequence[int], num_steps: int) -> list[tuple[int, int]]:
    return list(pairwise((*full_steps, num_steps)))


def in_order(wanted: Sequence[int], end: int) -> tuple[int, ...]:
    """The nearest list of steps that rises from 0 and leaves room for those that follow."""
    steps = [0]
    for number, step in enumerate(wanted[1:], 1):
        steps.append(min(max(step, steps[-1] + 1), end - (len(wanted) - number)))
    return tuple(steps)
