"""Phases of the steps, from `rfc.phase`, and the programs that run before a step's phase is decided."""

from __future__ import annotations

from collections.abc import Iterable

from rfc.phase import Phase, phase_named

INVARIANT = "INVARIANT"
TIMESTEP = "TIMESTEP"

HOISTED_PHASES = (INVARIANT, TIMESTEP)
"""Programs of hoisted work: once per generation, and once per timestep (`rfc_fx.passes.hoist`)."""

PREFIX = "PREFIX"
"""The program that all phases share, with the data that a schedule decides by (`rfc_fx.passes.prefix`)."""

BEFORE_DECISION = (*HOISTED_PHASES, PREFIX)


def step_phases(programs: Iterable[str]) -> dict[str, Phase]:
    """The phases among these programs, without those that run before the decision."""
    return {name: phase_named(name) for name in programs if name not in BEFORE_DECISION}
