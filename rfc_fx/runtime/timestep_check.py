"""Timestep check: whether calls on a device were at the timesteps that their generation is known to have; looked at when it is over."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from rfc_fx.errors import RFCError
from rfc_fx.runtime import calls
from rfc_fx.runtime.timetable import Timetable


class OtherTimestepsWarning(UserWarning):
    """A generation that ended before its last step had calls at other timesteps than the known ones it was computed for."""


class TimestepCheck:
    """The timesteps that a generation's calls brought on a device, beside the known ones that its steps were computed for.

    The first call is read at once: where a sample is at another timestep than the known one (samples of one batch at noise levels of their
    own), every call of the generation is. The others are copied on the device and read in one transfer at the generation's last step.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._is_read: bool | None = None
        """Whether every call is read; None before the first."""
        self._count = 0
        """Of the calls so far."""
        self._called: list[tuple[int, Tensor, float]] = []

    def ends(self, timestep: Tensor, known: float, timetable: Timetable | None) -> tuple[float, float]:
        """Smallest and largest timestep of a call that should be at the known one, which the timetable says; None: it was read."""
        if timetable is None or calls.on_host(timestep):
            return calls.different_ends(timestep) or (known, known)
        self._count += 1
        if timetable.is_view(timestep):
            return known, known
        if self._is_read is not False:
            ends = calls.timestep_ends(timestep)
            self._is_read = self._is_read or ends != (known, known)
            return ends
        self._called.append((self._count, timestep.detach().flatten().clone(), known))
        return known, known

    def verify(self) -> None:
        """Read what was copied; RFCError where a call was at another timestep than its step was computed for."""
        if (fault := self._fault()) is not None:
            raise RFCError(fault)

    def end(self) -> None:
        """Begin anew; OtherTimestepsWarning where the generation ends early and was wrong up to there."""
        if (fault := self._fault()) is not None:
            warnings.warn(fault, OtherTimestepsWarning, stacklevel=2)
        self._is_read, self._count = None, 0

    def _fault(self) -> str | None:
        called, self._called = self._called, []
        if not called:
            return None
        values = torch.cat([timestep for _, timestep, _ in called]).tolist()
        for number, timestep, known in called:
            own, values = values[: len(timestep)], values[len(timestep) :]
            if {*own} != {known}:
                return (
                    f"{self._model}: call {number} of a generation with known timesteps came at {min(own):g} to {max(own):g} and was "
                    f"computed for {known:g}, as it lay on a device; results from there on are wrong. Pass such timesteps as CPU tensors, "
                    "which are looked at in every call, or open the generation without timesteps or source"
                )
        return None
