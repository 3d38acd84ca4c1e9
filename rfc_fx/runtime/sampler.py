"""What is known of the sampler where nobody opens a generation."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

import rfc
from rfc.method import Method
from rfc.placement.log_snr import LogSNRPlaced, for_flow
from rfc.placement.noise_levels import is_flow_scheduler
from rfc_fx.runtime.timetable import Stage, Timetable


def default_method(source: Any) -> Method:
    """`rfc.LogSNR` at each generation's own noise levels where a pipeline or scheduler is known, else `rfc.RFC()`."""
    return rfc.RFC() if source is None else rfc.LogSNR()


def for_source(method: Method, source: Any) -> Method:
    """`rfc.LogSNR` for a flow where that is what a pipeline or scheduler samples: before its levels are read it does not know."""
    is_flow = source is not None and is_flow_scheduler(getattr(source, "scheduler", source))
    return for_flow(method) if is_flow else method


def on_programs_of(old: Method, method: Method) -> Method:
    """A method to take the place of another: `rfc.LogSNR` in the place of one that was for a flow is for it, too."""
    return for_flow(method) if isinstance(old.schedule, LogSNRPlaced) and old.schedule.is_flow else method


def scheduler_of(source: Any, where: str) -> Any:
    """The scheduler of a pipeline, or the scheduler itself; TypeError for what is neither."""
    scheduler = getattr(source, "scheduler", source)
    if not hasattr(scheduler, "set_timesteps"):
        raise TypeError(f"{where}: expected a pipeline with a scheduler, or a scheduler, got {type(source).__name__}")
    return scheduler


def stages(pipe: Any) -> dict[str, Stage]:
    """The timesteps of each denoiser of a pipeline that has one for high and one for low noise (Wan 2.2); empty for all others."""
    config = getattr(pipe, "config", {})
    share = config.get("boundary_ratio")
    if share is None or getattr(pipe, "transformer", None) is None or getattr(pipe, "transformer_2", None) is None:
        return {}
    boundary = share * pipe.scheduler.config.num_train_timesteps
    return {"transformer": (boundary, math.inf), "transformer_2": (-math.inf, boundary)}


class Known:
    """The timesteps of the coming generations: prepared, or those of a pipeline's scheduler (held weakly) as it stands at a first call."""

    def __init__(self) -> None:
        self.timesteps: Tensor | None = None
        """As they were prepared."""
        self.keeps_rows = False
        """Whether the rows of a batch stay where they are until a generation ends, as a pipeline's do."""
        self._repeated: frozenset[float] = frozenset()
        self._source: weakref.ref[Any] | None = None
        self._said: tuple[Tensor, Tensor | None] | None = None
        self._stage: Stage | None = None
        self.passes: Callable[[], str | None] | None = None
        """What a guider says of the pass that it prepares: "cond", "uncond", or nothing."""

    def prepare(self, timesteps: Tensor | None) -> None:
        """Take these; None: they are not known."""
        self.timesteps, self._source = timesteps, None
        counts = Counter(() if timesteps is None else timesteps.tolist())
        self._repeated = frozenset(timestep for timestep, count in counts.items() if count > 1)

    def follow(self, source: Any, stage: Stage | None = None, where: str = "follow") -> None:
        """Take those of a pipeline, or of a scheduler; `stage`: of the timesteps that this model is called at."""
        scheduler_of(source, where)
        self.prepare(None)
        self._source, self._stage = weakref.ref(source), stage

    def say(self, timesteps: Tensor, source: Tensor | None = None) -> None:
        """Take these for one generation: no other timesteps come, and in this order; `source`: the caller's tensor, of which they are."""
        self._said = timesteps, source

    def timetable(self) -> Timetable | None:
        """The timetable that was said, or that of the source's scheduler as it stands."""
        if self._said is not None:
            timesteps, caller = self._said
            return Timetable(timesteps, source=caller)
        source = None if self._source is None else self._source()
        return None if source is None else Timetable.of(getattr(source, "scheduler", source), self._stage)

    def repeats(self, timestep: Any) -> bool:
        """Whether the sampler calls several times at a timestep."""
        return timestep in self._repeated if isinstance(timestep, int | float) else False
