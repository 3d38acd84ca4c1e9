"""Phases: what a step of a generation does, as one table that schedules, the eager twin and the compiler read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

PhaseName = str
"""The name of a phase, as in `stats.phases`."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What a step computes, keeps and reads."""

    name: PhaseName
    mark: str
    """The character it is drawn as."""
    word: str
    computes_sites: bool = False
    """Every site is computed in full, and its state written."""
    verifies: bool = False
    """The last block is computed beside its estimate, to see how good that was."""
    reads_last: bool = False
    """The step begins behind the last block, with the stream that the latest step with `keeps_last` left there."""
    tokens_part: int | None = None
    """Of feed-forwards some tokens are computed: the share of that part of the steps (`rfc.Tokens`), counted from 1."""

    @property
    def estimates(self) -> bool:
        """Whether sites are forecast from their state."""
        return not (self.computes_sites or self.reads_last)

    @property
    def keeps_last(self) -> bool:
        """Whether the stream behind the last block is kept, where a phase of the schedule reads it."""
        return self.computes_sites or self.tokens_part is not None

    def __str__(self) -> str:
        return self.name


FULL = Phase(name="FULL", mark="#", word="full", computes_sites=True)
ESTIMATE = Phase(name="ESTIMATE", mark=".", word="estimated")
VERIFY = Phase(name="VERIFY", mark="v", word="verified", verifies=True)
REUSE = Phase(name="REUSE", mark="-", word="reused", reads_last=True)

PHASES = {phase.name: phase for phase in (FULL, ESTIMATE, VERIFY, REUSE)}
"""By name; PARTIAL_1, PARTIAL_2, ... are made by `phase_named`."""


@lru_cache(maxsize=64)
def phase_named(name: PhaseName) -> Phase:
    """The phase of that name; ValueError for another name."""
    if name in PHASES:
        return PHASES[name]
    if (match := re.fullmatch(r"PARTIAL_([1-9]\d*)", str(name))) is None:
        raise ValueError(f"phase must be one of {', '.join(PHASES)} or PARTIAL_<number>, got {name!r}")
    part = int(match[1])
    return Phase(name=name, mark=str(part) if part < 10 else "+", word="some tokens computed", tokens_part=part)


def is_partial(name: PhaseName) -> bool:
    """Whether the phase of that name computes some tokens."""
    return phase_named(name).tokens_part is not None
