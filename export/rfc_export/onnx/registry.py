"""The exporter's table of operators, read once a process instead of once a program.

`torch.onnx.export` makes the table anew in every call: it parses the source of five hundred functions, which takes as long as all the rest
of a small program's export. The table depends on the opset alone.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEPT: dict[Any, Any] = {}
_LOCK = threading.RLock()


@contextmanager
def read_once() -> Iterator[None]:
    """Exports inside share one table, and each may add to a copy of its own; where torch keeps it elsewhere, nothing changes."""
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:
        yield
        return
    registry: Any = getattr(_registration, "ONNXRegistry", None)
    own = None if registry is None else vars(registry).get("from_torchlib")
    if own is None:
        yield
        return

    def from_torchlib(cls: Any, *args: Any, **kwargs: Any) -> Any:
        key = args, tuple(sorted(kwargs.items()))
        if key not in _KEPT:
            _KEPT[key] = own.__get__(None, cls)(*args, **kwargs)
        table = copy.copy(_KEPT[key])
        table.functions = {name: list(entries) for name, entries in table.functions.items()}
        return table

    with _LOCK:
        registry.from_torchlib = classmethod(from_torchlib)
        try:
            yield
        finally:
            registry.from_torchlib = own
