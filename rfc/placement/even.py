"""Full steps even in log-SNR with polynomial forecasts, as multistep solvers have them: where refining may begin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from rfc.estimators.linear_prediction import LinearPrediction
from rfc.method import Method
from rfc.placement.nearest import CLOSEST
from rfc.placement.weighted import polynomial
from rfc.schedules.base import NoiseLevels

LIMITS = (2.5, 3.5)
"""Of |lambda|, between which the full steps lie: what few evaluations are best spent on differs from model to model."""

ORDERS = (0, 1, 2)
"""Of the polynomials. A guided model with few full steps may be nearest with the outputs as they are, as Euler's solver has them."""

CLOCK = 3.0
"""L of the clock L tanh(lambda / L), in which the forecasts are polynomials (`rfc.placement.nearest.flow_times`)."""


def even_lists(levels: NoiseLevels, nfc: int, granularity: str) -> Iterator[Method]:
    """Linear predictions at `nfc` full steps even in log-SNR within each limit, by each order. Not in the papers.

    With granularity "prediction" these are the multistep solvers of `nfc` steps at those levels (orders 0 and 1 as Euler and
    Adams-Bashforth 2), on the sampler's own grid. A list with two full steps at one level (the calls of Heun's method) has order 0 alone.
    """
    times = [CLOCK * math.tanh(level / CLOCK) for level in levels.lambdas]
    for full_steps in dict.fromkeys(even_steps(levels.lambdas, nfc, limit) for limit in LIMITS):
        is_rising = all(times[b] - times[a] > CLOSEST for a, b in pairwise(full_steps))
        for order in ORDERS if is_rising else ORDERS[:1]:
            schedule = polynomial(levels, full_steps, times, order, num_weights=max(order, 1))
            estimator = LinearPrediction(order=max(order, 1))
            # both granularities, as a fitted list has them here, so that all run on the same programs
            yield Method(estimator=estimator, schedule=schedule, granularity=granularity, default_granularity=granularity, name="even")


def even_steps(lambdas: Sequence[float], nfc: int, limit: float) -> tuple[int, ...]:
    """Step 0, and for each of `nfc` - 1 levels even in lambda up to `limit` the nearest step that is left, in their order."""
    known = np.clip(np.array(lambdas, dtype=np.float64), -20.0, 20.0)
    wanted = np.linspace(-limit, limit, nfc)[1:] if nfc > 1 else np.zeros(0)
    steps = [0]
    for number, level in enumerate(wanted):
        allowed = np.arange(steps[-1] + 1, len(known) - (len(wanted) - 1 - number))
        steps.append(int(allowed[np.abs(known[allowed] - level).argmin()]))
    return tuple(steps)
