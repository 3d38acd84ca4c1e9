"""Teacher forcing: every site forecast from its own true past, on recorded trajectories, so that no error of another site comes in.

The error of an estimate is ||O_hat - O||_2 / ||O||_2, per sample. The first 3 steps are full, then every N-th; the k-th step after a full
one is at distance k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import rfc
from benchmarks.quality.relation import Relation, relation
from benchmarks.quality.trajectory import Trajectory, record
from benchmarks.quality.workloads import FORCED, Bench, Lot, Sampler
from rfc.phase import FULL
from rfc.record import Record
from rfc.state import Clock, State, spec_of, zeros

WARMUP = 3


INTERVALS = (3, 4, 5, 7)


ESTIMATORS: dict[str, rfc.Estimator] = {
    "reuse (FORA)": rfc.Reuse(),
    **{f"Taylor m={m}": rfc.Taylor(order=m) for m in (1, 2, 3)},
    "Hermite m=2 (HiCache)": rfc.Hermite(order=2),
    "Newton m=2": rfc.Newton(order=2),
    **{f"RFE m={m}": rfc.RFE(order=m) for m in (1, 2)},
    "RFE m=1 per token": rfc.RFE(order=1, norm="token"),
    **{f"Projective m={m}": rfc.Projective(order=m) for m in (1, 2, 3)},
    "Projective m=2 per token": rfc.Projective(order=2, per="token"),
}


SHOWN = ("Taylor m=1", "RFE m=1", "Projective m=2")
"""Estimators whose errors the heat map shows."""


def distances(steps: int, interval: int) -> list[int]:
    """k of every step; 0 where it is full."""
    schedule, generation = rfc.Every(interval=interval, warmup=WARMUP), Record()
    numbers = schedule.numbers()
    return [0 if generation.decide(schedule, numbers, None, None) == FULL.name else generation.since for _ in range(steps)]


def forced_errors(trajectory: Trajectory, site: int, estimator: rfc.Estimator, interval: int) -> Float[Tensor, "S N"]:
    """The error of every step and sample at one site; nan at full steps."""
    schedule, generation = rfc.Every(interval=interval, warmup=WARMUP), Record()
    numbers = schedule.numbers()
    state: State = {}
    rows: list[Tensor] = []
    for I, O in zip(trajectory.inputs(site), trajectory.outputs(site), strict=True):
        clock = Clock.at(*generation.clock(schedule))
        if generation.decide(schedule, numbers, None, None) == FULL.name:
            state = estimator.refresh(state or zeros(estimator.slots(spec_of(I), spec_of(O)), O.device), I, O, clock)
            rows.append(torch.full((len(O),), torch.nan))
        else:
            apart = (estimator.estimate(state, I, clock) - O).float().flatten(1).norm(dim=1)
            rows.append((apart / O.float().flatten(1).norm(dim=1)).cpu())
    return torch.stack(rows)


def measured(
    bench: Bench,
    sampler: Sampler,
    *,
    batches: int = 2,
    batch: int = 4,
    intervals: tuple[int, ...] = INTERVALS,
    estimators: dict[str, rfc.Estimator] = ESTIMATORS,
    told: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Errors by estimator, interval, distance, site and step, and how inputs and outputs move together; means over samples.

    One batch is recorded at a time: its inputs and outputs at all sites and steps are what takes memory.
    """
    lot = Lot.of(range(FORCED, FORCED + batches * batch), batch)
    errors: dict[tuple[str, int], list[Tensor]] = {}
    relations: dict[int, list[Relation]] = {}
    sites: list[str] = []
    for part in lot.batches:
        told("recording full computation")
        trajectory = record(bench, sampler, lot, part)
        sites = trajectory.sites
        for interval in intervals:
            for name, estimator in estimators.items():
                told(f"teacher forcing: {name}, N={interval}")
                of_sites = [forced_errors(trajectory, site, estimator, interval) for site in range(len(sites))]
                errors.setdefault((name, interval), []).append(torch.stack(of_sites))
            told(f"teacher forcing: relations, N={interval}")
            relations.setdefault(interval, []).append(relation(trajectory, interval, distances(sampler.steps, interval)))
    means = {key: torch.cat(parts, dim=2).mean(2) for key, parts in errors.items()}  # (sites, steps)
    return {
        "samples": len(lot.seeds),
        "sampler": sampler.what,
        "warmup": WARMUP,
        "intervals": list(intervals),
        "sites": sites,
        "errors": {
            name: {str(interval): _summary(means[name, interval], distances(sampler.steps, interval)) for interval in intervals}
            for name in estimators
        },
        "heat": {
            "interval": intervals[len(intervals) // 2],
            "errors": {name: _rounded(means[name, intervals[len(intervals) // 2]]) for name in SHOWN if name in estimators},
        },
        "relation": {str(interval): Relation.merged(parts) for interval, parts in relations.items()},
    }


def _summary(errors: Float[Tensor, "M S"], k: list[int]) -> dict[str, Any]:
    """The mean over sites and skipped steps, and the median by distance: some distance gets the last step, which is like no other."""
    at = {distance: [step for step, other in enumerate(k) if other == distance] for distance in sorted({*k} - {0})}
    return {"mean": float(errors.nanmean()), "median_by_k": [float(errors[:, steps].median()) for steps in at.values()]}


def _rounded(errors: Float[Tensor, "M S"]) -> list[list[float | None]]:
    """Four digits; None at full steps."""
    return [[None if value != value else float(f"{value:.4g}") for value in row] for row in errors.tolist()]
