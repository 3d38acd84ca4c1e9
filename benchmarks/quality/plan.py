"""What a run of the laboratory is to do: its options, checked."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from benchmarks.quality.entry import Entry
from benchmarks.quality.methods import METHODS, entries_named
from benchmarks.quality.methods import QUICK as QUICK_METHODS
from benchmarks.quality.workloads import QUICK, SAMPLERS, Sampler


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run."""

    samplers: list[Sampler]
    entries: list[Entry]
    samples: int
    groups: int
    batch: int
    calibration_batches: int
    closed: bool
    forced: bool
    quick: bool

    @property
    def cells(self) -> int:
        """Of the closed loop, full computation counted."""
        return len(self.samplers) + sum(len(sampler.judged_at(entry.kind)) for sampler in self.samplers for entry in self.entries)


def planned(
    samplers: str, nfc: str, methods: str, parts: str, samples: int, groups: int, batch: int, calibration_batches: int, *, quick: bool
) -> Plan:
    """The options, checked; BadParameter for names that nothing has."""
    for text, known in ((samplers, SAMPLERS), (parts, ("closed", "forced"))):
        if unknown := [name for name in _list(text) if name not in known]:
            raise typer.BadParameter(f"{', '.join(unknown)}: expected of {'; '.join(known)}")
    budgets = [int(budget) for budget in _list(nfc)]
    of = [QUICK] if quick else [SAMPLERS[name] for name in _list(samplers)]
    if budgets:
        of = [sampler.at(budgets) for sampler in of]
    try:
        entries = entries_named(_list(methods) or (QUICK_METHODS if quick else METHODS))
    except KeyError as error:
        raise typer.BadParameter(f"{error.args[0]}: expected of {'; '.join(METHODS)}") from None
    if quick:
        samples, groups, batch, calibration_batches = 12, 3, 4, 1
    return Plan(
        samplers=[sampler for sampler in of if sampler.budgets],
        entries=entries,
        samples=samples,
        groups=groups,
        batch=batch,
        calibration_batches=calibration_batches,
        closed="closed" in parts,
        forced="forced" in parts,
        quick=quick,
    )


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]
