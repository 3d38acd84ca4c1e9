"""Which steps are full, by the noise levels of a sampler's calls: those from which no forecast reaches far in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.schedules.base import NoiseLevels

LIMIT = 5.0
"""Of |lambda|: beyond it a sample is all noise, or all picture, and further away is no further for the model."""


Weight = Literal["angle", "share"]
"""Of a skipped step (`nearest_steps`)."""


CLOSEST = 1e-3
"""Of two calls' times: nearer ones are a repeated call, or have no polynomial between them."""


KEPT = 0.3
"""Of an error in the sample, that a flow's model keeps while the noise falls to nothing; of what it undoes it needs no correction."""


POWER = 2
"""Of the distance in lambda: a forecast's first missing term (the mean of line and parabola misses half of the second order)."""


@lru_cache(maxsize=256)
def nearest_steps(
    lambdas: tuple[float, ...], end: float | None, nfc: int, *, weight: Weight = "angle", limit: float = LIMIT
) -> tuple[int, ...]:
    """`nfc` steps, step 0 among them, for which the forecasts of all others are nearest to their last full step.

    Minimizes sum_j theta_j (lambda_j - lambda_a(j))^2 over the skipped steps j, exactly, by dynamic programming: a(j) is the last full step
    before j, and theta_j = |atan(sigma_j / alpha_j) - atan(sigma_j+1 / alpha_j+1)| the angle that the sampler's step from j turns the
    sample by, which is what an error of the model's output there is multiplied with. A call that moves nothing by itself (the second of
    Heun's method) counts as the one before. With the `weight` "share" theta_j is the change of sigma / (alpha + sigma), with which a flow's
    sampler multiplies, times alpha / (alpha + sigma): the more noise there is, the more of an error the next full step takes back
    (`rfc.AdaptiveNewton`). |lambda| counts up to `limit`. Not in the papers.
    """
    count = len(lambdas)
    levels = NoiseLevels(lambdas, end)
    theta = turned(levels) if weight == "angle" else turned(levels, weight) * (1 - shares(levels)[:-1])
    at = torch.tensor(lambdas, dtype=torch.float64).clamp(-limit, limit)
    reach = theta * (at - at[:, None]).abs() ** POWER
    skipped = torch.triu(reach, diagonal=1).cumsum(dim=1)  # row a: of steps a+1 to j
    none = torch.zeros(count, 1, dtype=torch.float64)
    between = torch.cat([none, skipped], dim=1)  # row a, column b: of steps a+1 to b-1, for b up to `count`
    between = between.masked_fill(torch.ones(count, count + 1, dtype=torch.bool).tril(), math.inf)  # b comes after a
    least = torch.full((count,), math.inf, dtype=torch.float64)
    least[0] = 0.0
    came: list[torch.Tensor] = []
    for _ in range(nfc):
        reached, before = (least[:, None] + between).min(dim=0)
        came.append(before)
        least = reached[:-1]
    path = [count]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return tuple(reversed(path[1:]))


def full_steps_at(levels: NoiseLevels, nfc: int) -> tuple[int, ...]:
    """LogSNR's full steps (`nearest_steps`): of a flow with the weight "share", and |lambda| up to 1.5 + nfc / 4, `LIMIT` at most.

    A flow's sampler multiplies the output by a difference of shares of noise; with few full steps those at both ends, where flows are
    smooth, would be missed in between. Chosen on one flow, measured on two (benchmarks/README.md, "Truth").
    """
    if levels.is_flow:
        return nearest_steps(tuple(levels.lambdas), levels.end, nfc, weight="share", limit=flow_limit(nfc))
    return nearest_steps(tuple(levels.lambdas), levels.end, nfc)


def flow_limit(nfc: int) -> float:
    """Of |lambda| of a flow with so many full steps."""
    return min(LIMIT, 1.5 + nfc / 4)


def flow_times(levels: NoiseLevels, nfc: int) -> tuple[float, ...] | None:
    """The clock in which a flow's forecasts are polynomials: L tanh(lambda / L) at each call, L as in `full_steps_at`.

    That is log-SNR where pictures form, and ever slower towards all noise and all picture, where outputs move less and less. None where
    a sampler calls twice at one level. Chosen on two flows; what of it was judged blindly says benchmarks/README.md, "Truth".
    """
    limit = flow_limit(nfc)
    times = tuple(limit * math.tanh(level / limit) for level in levels.lambdas)
    return times if all(b - a > CLOSEST for a, b in pairwise(times)) else None


def turned(levels: NoiseLevels, weight: Weight = "angle") -> Float[Tensor, " N"]:
    """What the sampler's step from each call turns the sample by (`nearest_steps`), float64."""
    angles = (torch.atan(torch.exp(-_with_end(levels))) if weight == "angle" else shares(levels)).diff().abs()
    for step in range(1, len(angles)):
        if angles[step] == 0:
            angles[step] = angles[step - 1]
    return angles


def shares(levels: NoiseLevels) -> Float[Tensor, " N+1"]:
    """sigma / (alpha + sigma) at each call and after the last, float64."""
    return torch.sigmoid(-_with_end(levels))


def _with_end(levels: NoiseLevels) -> Float[Tensor, " N+1"]:
    return torch.tensor([*levels.lambdas, math.inf if levels.end is None else levels.end], dtype=torch.float64)


def corrections(levels: NoiseLevels, full_steps: Sequence[int], times: Sequence[float]) -> list[tuple[float, float]]:
    """For each call (s S_1, s S_2), which `rfc.AdaptiveNewton` corrects a full step by; zeros for all others and for the first.

    S_i = sum_k g_k (t_k - t_a)^i / g_j over the steps k skipped between the full steps a and j, with what a flow's sampler multiplies the
    output of a call by, g, and the forecast's clock t. What the skipped steps did wrong stands in the sample at j: a model that finds the
    picture whatever stands there undoes it as the noise falls, to r = sigma_b / sigma_j by the next full step b, and one that takes
    the sample for what it is keeps it. s = r + `KEPT` (1 - r): what is left has to be taken back.
    """
    gains, share = turned(levels, "share").tolist(), shares(levels).tolist()
    rows = [(0.0, 0.0)] * len(times)
    for before, step, after in zip(full_steps, full_steps[1:], [*full_steps[2:], len(times)], strict=False):
        left = share[after] / share[step]
        scale = (left + KEPT * (1 - left)) / gains[step]
        since = [(gains[k], times[k] - times[before]) for k in range(before + 1, step)]
        rows[step] = scale * sum(g * t for g, t in since), scale * sum(g * t * t for g, t in since)
    return rows
