"""Steps of a generation as they are taken: told to whoever waits, who may end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from rfc.phase import PhaseName
from rfc_fx.errors import RFCError
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.runtime.stopwatch import Stopwatch


class StepTaken(NamedTuple):
    """A step of a generation."""

    number: int
    """From 1."""
    total: int | None
    """Steps of the generation, where the scheduler says."""
    is_full: bool
    """Whether a pass of it was computed in full; else all were estimated."""


class GoneError(RFCError):
    """Nobody waits any more for what is being drawn."""


Tell = Callable[[StepTaken], object]
"""Takes each step; GoneError raised in it ends the generation."""


class Steps:
    """The steps of one generation: passes of a step (guidance) are one, denoisers follow each other."""

    def __init__(self, pipe: Any, tell: Tell) -> None:
        self._pipe, self._tell = pipe, tell
        self._model: StepModel | None = None
        self._before = self._step = 0
        self._is_full = False

    def passed(self, model: StepModel, phase: PhaseName) -> None:
        """A pass has been made; the first one of a step says that the step before is complete."""
        step = len(model.stats.phases)
        if model is not self._model or step > self._step:
            self.finish()
            if model is not self._model:
                self._before += self._step
            self._model, self._step = model, step
        self._is_full |= phase == "FULL"

    def finish(self) -> None:
        """The step under way is complete."""
        if self._model is None:
            return
        is_full, self._is_full = self._is_full, False
        timesteps = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
        self._tell(StepTaken(self._before + self._step, None if timesteps is None else len(timesteps), is_full))


class StepWatch(Stopwatch):
    """Measures the steps of a model, and passes each on."""

    def __init__(self, device: torch.device, model: StepModel, steps: Steps) -> None:
        super().__init__(device)
        self._model, self._on = model, steps

    def note(self, begin: Any, phase: PhaseName) -> None:
        """A pass has been made since `begin`."""
        super().note(begin, phase)
        self._on.passed(self._model, phase)
