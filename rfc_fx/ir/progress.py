"""The bookkeeping of a generation as state of the graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rfc.bookkeeping import Book
from rfc.counts import Counts
from rfc.phase import ESTIMATE, FULL
from rfc.state import SlotSpec

LOG_STEPS = 4096
"""Steps of one generation of which the cond lowering remembers phase and error (later ones overwrite the last)."""


class Progress(NamedTuple):
    """What the cond lowering keeps between steps, as 0-d float32 tensors; stacked, one slot of the state."""

    step: Tensor
    since: Tensor
    gap: Tensor
    anchors: Tensor
    total: Tensor
    timestep: Tensor
    """Largest of the batch at the latest step."""
    restart: Tensor
    """1 after a reset: the next step begins a new generation."""

    @classmethod
    def unbind(cls, stacked: Tensor) -> Progress:
        """The parts of the slot."""
        return cls(*stacked.unbind())

    def stack(self) -> Tensor:
        """The slot."""
        return torch.stack(list(self))

    @property
    def counts(self) -> Counts:
        """Where the generation stands."""
        return Counts(self.since, self.gap, self.anchors, self.total)


def progress_slots() -> dict[str, SlotSpec]:
    """Bookkeeping of the cond lowering: `Progress`, and a row [full, eps, total] per step."""
    return {"progress": SlotSpec((len(Progress._fields),), torch.float32), "log": SlotSpec((LOG_STEPS, 3), torch.float32)}


def mark_restart(stacked: Tensor) -> None:
    """Let the next step begin a new generation."""
    stacked[Progress._fields.index("restart")] = 1.0


def read_book(stacked: Tensor, log: Tensor) -> Book:
    """What the generation did, from the two slots."""
    progress = Progress(*stacked.tolist())
    steps = int(progress.step)
    rows = log[:steps].tolist()
    known = [eps == eps for _, eps, _ in rows]
    return Book(
        phases=tuple(FULL.name if full else ESTIMATE.name for full, _, _ in rows),
        eps=tuple(eps if is_known else None for (_, eps, _), is_known in zip(rows, known, strict=True)),
        totals=tuple(total if is_known else None for (_, _, total), is_known in zip(rows, known, strict=True)),
        timestep=float(progress.timestep) if steps else None,
        has_moved=steps > 1,
    )


def is_over(stacked: Tensor, timestep: float | None) -> bool:
    """Whether a call at `timestep` would begin a new generation."""
    progress = Progress(*stacked.tolist())
    return bool(progress.step == 0 or progress.restart > 0 or (timestep is not None and timestep > progress.timestep))
