"""Plan: what a transformed model holds and runs, known before the first run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import torch

from rfc.phase import ESTIMATE, FULL


class Level(IntEnum):
    """What a value depends on, besides the weights."""

    INVARIANT = 0
    """Conditioning alone."""
    TIMESTEP = 1
    LATENT = 2


class SlotRow(NamedTuple):
    """One state tensor of the plan."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a transformed model will hold and run for one call signature, known before the first run."""

    sites: list[str]
    slots: list[SlotRow]
    state_bytes: int
    """Bytes of state of one context."""
    full_flops: int
    estimate_flops: int
    """Floating-point operations of a FULL and of an ESTIMATE step, PREFIX (and TIMESTEP where it is a program) counted in both."""
    invariant_flops: int = 0
    """Of INVARIANT, once per generation."""
    invariant_bytes: int = 0
    """Bytes of what INVARIANT computed, kept for the generation, in one context."""
    timestep_flops: int = 0
    """Of TIMESTEP, per step; after `prepare` one batched product for all steps."""
    timestep_bytes: int = 0
    """Bytes of what TIMESTEP computes for one step; after `prepare` a table holds as much for every step."""
    phase_flops: Mapping[str, int] = field(default_factory=dict)
    """Of a step in each phase that the method has beside FULL and ESTIMATE, counted as these are."""
    alternatives: Alternatives = field(default_factory=dict)
    """Bytes of state of one context, had another granularity or `state_dtype` been chosen (without the bookkeeping of "cond")."""
    dependence: tuple[Dependence, ...] = ()
    """What depends on the conditioning alone, on the timestep, and on the latent."""
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    """What each program sends to other ranks; a step runs PREFIX, where there is one, and the program of its phase."""

    def share(self, phase: str) -> float:
        """FLOPs of a step in that phase as a share of a FULL step's."""
        known = {FULL.name: self.full_flops, ESTIMATE.name: self.estimate_flops, **self.phase_flops}
        return known[phase] / max(1, self.full_flops)

    @property
    def count(self) -> str:
        """The number of sites in words, such as "16 sites"."""
        return f"{len(self.sites)} site{'' if len(self.sites) == 1 else 's'}"

    @property
    def estimate_share(self) -> float:
        """FLOPs of an ESTIMATE step as a share of a FULL step's."""
        return self.share(ESTIMATE.name)


class Traffic(NamedTuple):
    """What one run of a program communicates."""

    collectives: Mapping[str, int]
    """By kind: all_to_all_single, all_gather_into_tensor, all_reduce."""
    sent_bytes: int
    """Bytes that one rank sends: pairwise exchanges, and rings for gathers and reductions."""


Alternatives = Mapping[str, Mapping[torch.dtype | None, int]]
"""Bytes of state of one context by granularity and `state_dtype`; a granularity without a site is not in it."""


class Dependence(NamedTuple):
    """What of a model depends on one kind of argument and on nothing above it."""

    level: Level
    operations: int
    """Without views; all of a site's work counts as its parts."""
    flops: int
    weight_bytes: int
    hoistable: int
    """Operations that `hoist=True` computes outside the per-step programs."""
    kept_bytes: int
    """Bytes of their results that the steps read; for the timestep, of one step."""
