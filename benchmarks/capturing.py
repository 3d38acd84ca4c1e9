"""One capture for many transforms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo.testing

from rfc_fx.capture.export import capture
from rfc_fx.passes import build
from rfc_fx.runtime.calls import signature


@contextmanager
def captured_once(captures: dict[Any, Any] | None = None) -> Iterator[None]:
    """Transform a model as often as one likes for the price of one capture: no later stage changes the captured graph.

    `captures`: those made before, to which new ones are added.
    """
    held: dict[Any, Any] = {} if captures is None else captures

    def once(model: torch.nn.Module, arguments: dict[str, Any]) -> Any:
        key = model, signature(arguments, model)[0]
        if key not in held:
            held[key] = capture(model, arguments)
        return held[key]

    with mock.patch.object(build, "capture", once):
        yield
