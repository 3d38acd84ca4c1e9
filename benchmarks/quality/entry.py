"""An entry of the quality table, what a method may know of a sampler beforehand, and full steps at equal gaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import rfc
from rfc.method import Method

FULL = "full"
"""Full computation: what all others are compared with."""


class Facts(NamedTuple):
    """What a method may know of a sampler before it runs."""

    steps: int
    ratios: Callable[[], Sequence[float]]
    """MagCache's ratios, measured once in a generation of full computation."""
    planned: Callable[[float, Literal["first", "all"]], list[int]]
    """Full steps of RCS with a threshold, decided beforehand on true inputs of the first site or of all sites (`planned.py`)."""
    scheduler: Any
    """What draws: its noise levels are known before it runs."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method; exactly one of `listed`, `placed` and `thresholded` is given."""

    name: str
    kind: Literal["published", "RFC", "ours", "control"]
    """control: stands in a table of parts or variants."""
    listed: Callable[[list[int]], Method] | None = None
    placed: Callable[[int, Facts], Method] | None = None
    """Makes it from the number of full steps."""
    moved: int = 0
    """Of a placed method: so many lists of full steps are drawn with the calibration seeds, and the best is taken; 0: its own."""
    forecasts: tuple[rfc.Estimator, ...] = ()
    """Of which the best is taken with it; empty: the method's own."""
    thresholded: Callable[[float, Facts], Method] | None = None
    low: float = 1e-4
    high: float = 50.0
    """Between which the threshold is looked for."""
    note: str = ""


def uniform_steps(steps: int, budget: int) -> list[int]:
    """`budget` full steps of `steps` as FORA and TaylorSeer choose them: 2 leading ones (3 where 2 do not do), then every N-th.

    Where no N gives the number: 2 leading ones, then gaps that differ by one step at most. Raises ValueError unless 3 <= budget <= steps.
    """
    if not 3 <= budget <= steps:
        raise ValueError(f"uniform_steps: expected 3 <= budget <= steps, got {budget} of {steps}")
    for warmup in (2, 3):
        for interval in range(1, steps):
            listed = [*range(warmup), *range(warmup - 1 + interval, steps, interval)]
            if len(listed) == budget:
                return listed
    rest = budget - 2
    return [0, 1, *(1 + (i * (steps - 2)) // rest for i in range(1, rest + 1))]
