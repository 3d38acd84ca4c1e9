"""Readback: a few numbers on their way from the device to the host, read when they are needed and not before."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """One message at a time. On a CUDA device it travels through pinned memory: posting waits for nothing, reading for the message."""

    def __init__(self) -> None:
        self._held: Tensor | None = None
        self._pinned: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    @property
    def is_full(self) -> bool:
        """Whether a message has not been read yet."""
        return self._held is not None

    def post(self, numbers: Tensor) -> None:
        """Send the numbers, (n,); an unread message is lost."""
        if not numbers.is_cuda:
            self._held = numbers
            return
        if self._pinned is None:
            with torch.inference_mode(False):
                self._pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._event = torch.cuda.Event()
        assert self._event is not None
        self._pinned.copy_(numbers, non_blocking=True)
        self._event.record(torch.cuda.current_stream(numbers.device))
        self._held = self._pinned

    def read(self) -> list[float]:
        """Wait for the message and take it out."""
        assert self._held is not None
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._held.tolist()
        self._held = None
        return numbers

    def empty(self) -> None:
        """Lose an unread message."""
        self._held = None
