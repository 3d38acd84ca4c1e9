"""Frames: which Python torch.compile looks at. Only the programs are frames for it; the lines between them are the host's."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")


R = TypeVar("R")


def passed_over(function: Callable[P, R]) -> Callable[P, R]:
    """Have torch.compile leave this function's own lines as they stand; what it calls may be compiled."""
    skip_code: Callable[..., Any] | None = getattr(torch._dynamo.eval_frame, "skip_code", None)
    if skip_code is not None:
        skip_code(function.__code__)
    return function


def left_alone(function: Callable[P, R]) -> Callable[P, R]:
    """Have torch.compile leave this function and all that it calls as they stand, with `fullgraph=True` too."""

    def counted(*args: P.args, **kwargs: P.kwargs) -> R:
        _count_frame()
        return function(*args, **kwargs)

    disabled: Callable[P, R] = torch.compiler.disable(counted)

    @passed_over  # torch.compile puts a frame of its own around a function that is disabled itself, and finds a break in that
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return disabled(*args, **kwargs)

    return run


def _count_frame() -> None:
    """Count a frame as compiled: newer torch refuses calls without any where the caller has passed `fullgraph=True`."""
    exchange: Callable[[int], int] | None = getattr(torch._C._dynamo.eval_frame, "set_fullgraph_compiled_frame_count", None)
    if exchange is not None and (count := exchange(-1)) >= 0:  # below 0: nobody counts
        exchange(count + 1)


def skip_own_frame(function: Callable[P, R]) -> Callable[P, R]:
    """Run this function's own lines as they stand, and let torch.compile take what it calls.

    `torch.compiler.disable(recursive=False)` alone has its decision made anew in every call, which takes longer (0.6 ms on a slow core)
    than all that the lines do; a code object that is marked to be skipped is passed over at once.
    """
    wrapped: Callable[P, R] = torch.compiler.disable(recursive=False)(passed_over(function))

    @passed_over
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not is_compiling():
            return function(*args, **kwargs)
        if _capturing and threading.get_ident() not in _capturing:
            return function(*args, **kwargs)  # torch's wrapper takes the export of another thread for one of this call, and refuses
        return wrapped(*args, **kwargs)

    return run


is_compiling: Callable[[], Any] = torch._C._dynamo.eval_frame.get_eval_frame_callback
"""Whether torch.compile looks at frames that are called here: None where it does not."""


_capturing: set[int] = set()
"""Threads in which a model is being captured."""


@contextmanager
def capturing() -> Iterator[None]:
    """A model is captured here, which torch tells all threads of."""
    _capturing.add(threading.get_ident())
    try:
        yield
    finally:
        _capturing.discard(threading.get_ident())
