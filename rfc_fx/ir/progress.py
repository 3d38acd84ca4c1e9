"""The bookkeeping of a generation as state of the graph."""

from __future__ import annotations

import torch

from rfc.state import SlotSpec

LOG_STEPS = 4096
"""Steps of one generation of which the cond lowering remembers phase and error (later ones overwrite the last)."""


def progress_slots() -> dict[str, SlotSpec]:
    """Bookkeeping of the cond lowering: [step, since, gap, anchors, total, timestep, restart], a row [full, eps, total] per step."""
    return {"progress": SlotSpec((7,), torch.float32), "log": SlotSpec((LOG_STEPS, 3), torch.float32)}


RESTART = 6
"""Where in `progress` a reset is noted: the next step begins a new generation."""
