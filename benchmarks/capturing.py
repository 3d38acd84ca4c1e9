"""One capture for many transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch._dynamo.testing

from rfc_fx.capture.export import capture
from rfc_fx.passes import build
from rfc_fx.runtime.calls import signature


@contextmanager
def captured_once(captures: dict[Any, Any] | None = None, alike: Callable[[torch.nn.Module], Any] = lambda model: model) -> Iterator[None]:
    """Transform a model as often as one likes for the price of one capture: no later stage changes the captured graph.

    A graph that has values of its call as constants is shared by calls with these values alone.

    `captures`: those made before, to which new ones are added; `alike`: equal for models that share a graph, each with its own weights.
    """
    held: dict[Any, Any] = {} if captures is None else captures

    def once(model: torch.nn.Module, arguments: dict[str, Any]) -> Any:
        fixed_to, leaves = signature(arguments, model)
        key = alike(model), fixed_to
        for captured, values in held.get(key, ()):
            if all(torch.equal(leaves[position], value) for position, value in values.items()):
                return captured if captured.model is model else replace(captured, model=model)
        captured = capture(model, arguments)
        decided = [position for position in captured.decided if isinstance(leaves[position], torch.Tensor)]
        held.setdefault(key, []).append((captured, {position: leaves[position].clone() for position in decided}))
        return captured

    with mock.patch.object(build, "capture", once):
        yield
