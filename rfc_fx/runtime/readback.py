"""Readback: a few numbers on their way from the device to the host, waited for when they are needed and not before."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """One readback at a time. On a CUDA device it goes through pinned memory: starting waits for nothing, `wait` for the copy."""

    def __init__(self) -> None:
        self.pending = False
        """Whether numbers are under way or have not been taken."""
        self.timestep_unchecked = False
        """The pending readback carries a timestep the host has not checked."""
        self.expected_timestep: float | None = None
        """Prepared timestep the step ran with."""
        self._numbers: Tensor | None = None
        self._pinned: Tensor | None = None
        self._event: torch.cuda.Event | None = None
        self._in_flight = False
        """Whether a copy was started that nobody waited for: another stream must not overtake it."""

    def start(self, numbers: Tensor, *, timestep_unchecked: bool = False, expected_timestep: float | None = None) -> None:
        """Copy the numbers, (n,), to the host; numbers that nobody waited for are lost."""
        self.pending, self.timestep_unchecked, self.expected_timestep = True, timestep_unchecked, expected_timestep
        if not numbers.is_cuda:
            self._numbers = numbers
            return
        if self._pinned is None:
            with torch.inference_mode(False):
                self._pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._event = torch.cuda.Event()
        assert self._event is not None
        stream = torch.cuda.current_stream(numbers.device)
        if self._in_flight:
            stream.wait_event(self._event)
        self._pinned.copy_(numbers, non_blocking=True)
        self._event.record(stream)
        self._in_flight = True
        self._numbers = self._pinned

    def wait(self) -> list[float]:
        """Wait for the numbers and take them."""
        assert self._numbers is not None
        if self._event is not None:
            self._event.synchronize()
            self._in_flight = False
        numbers: list[float] = self._numbers.tolist()
        self.discard()
        return numbers

    def discard(self) -> None:
        """Lose the numbers."""
        self.pending, self._numbers = False, None
