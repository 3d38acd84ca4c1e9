"""Queue: where the sessions of an engine put their work; on a CUDA device behind the caller's and before it, by events, not by the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rfc_export.onnx.libraries import PROVIDERS


class Queue:
    """On a CUDA device a stream of its own, for all sessions of an engine; elsewhere nothing, as every call returns when it is done.

    ONNX Runtime takes the default stream, whose handle is 0, for none; so the sessions have another, which waits for the caller's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def providers(self) -> list[Any]:
        """What a session is made with: on a CUDA device its number and the stream."""
        name = PROVIDERS[self.device.type]
        if self.stream is None:
            return [name]
        settings = {"device_id": str(self.device.index or 0), "user_compute_stream": str(self.stream.cuda_stream)}
        return [(name, settings)]

    def options(self, runtime: Any) -> Any:
        """Of a run: the host does not wait for the device at its end."""
        options = runtime.RunOptions()
        if self.stream is not None:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What runs inside comes after the caller's work so far, and before what the caller does next."""
        if self.stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        yield
        caller.wait_stream(self.stream)
