"""RCS decided beforehand, on the inputs of a generation in full computation: of the first site, as published, or of all sites.

A decision that looks at all sites cannot be taken before they run; on a recorded trajectory it can, and the steps it chooses are then run
as a list. What this leaves out: the inputs of an estimated generation are not quite those of the true one.
"""

from __future__ import annotations

from typing import Literal

import torch

import rfc
from benchmarks.quality.trajectory import Trajectory
from rfc.phase import FULL
from rfc.record import Record
from rfc.state import Clock, State, spec_of, zeros


def planned_steps(trajectory: Trajectory, tau: float, where: Literal["first", "all"], warmup: int = 3) -> list[int]:
    """The full steps of RCS of order 1 with threshold `tau`; with "all", eps is the mean over the sites of theirs."""
    schedule = rfc.RCS(tau=tau, warmup=warmup)
    numbers, generation = schedule.numbers(), Record()
    sites = range(1 if where == "first" else len(trajectory.sites))
    states: dict[int, State] = {}
    for pairs in trajectory.steps:
        clock = Clock.at(*generation.clock(schedule))
        watched = {site: {"I": pairs[site][0]} for site in sites}
        errors = [schedule.error(watched[site], states[site], clock) for site in sites if site in states]
        eps = float(torch.stack(errors).mean()) if errors else None
        if generation.decide(schedule, numbers, eps, None) == FULL.name:
            for site in sites:
                old = states.get(site) or zeros(schedule.slots({"I": spec_of(watched[site]["I"])}), watched[site]["I"].device)
                states[site] = schedule.refresh(old, watched[site], clock)
    return [step for step, phase in enumerate(generation.phases) if phase == FULL.name]
