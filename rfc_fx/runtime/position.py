"""Position: where a call stands in its generation."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """Where a call stands in its generation: what was found when it came, and holds for this call whatever other threads call meanwhile."""

    lane: str = ""
    """Name of its lane."""
    step: int | None = None
    """In the timetable of the generation, counted from its first call; None where the timesteps are not known."""
    timestep: float | None = None
    """As the model sees it, by the timetable."""
    ends: tuple[float, float] | None = None
    """Smallest and largest timestep of the batch, where the host has looked at them."""
    in_doubt: bool = False
    """Whether it is computed in full, which no timestep calls for."""
    is_followed: bool = False
    """Whether its latent was held against those before, so that its output is to be noted."""
    is_evicted: bool = False
    """Whether it would have gone on with a run whose programs have made room for others."""
    is_late: bool = False
    """Whether steps were made without it since its lane's latest call, which nobody's timetable says."""
    is_recounted: bool = False
    """Whether its name is called another number of times a step than before, so that its lane may have been another call's."""
    is_repeated: bool = False
    """Whether the call was made before: the same lane, latent and timestep."""
