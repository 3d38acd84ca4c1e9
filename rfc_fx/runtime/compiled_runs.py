"""Compiled runs: the programs of a model as torch.compile makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Runnable = Callable[..., Any]


class CompiledRuns:
    """The compiled form of each program, made at its first run with the same arguments of torch.compile."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args, self.settings = args, kwargs
        self._made: dict[Runnable, Runnable] = {}

    def of(self, run: Runnable) -> Runnable:
        """The compiled form of a program."""
        made = self._made.get(run)
        if made is None:
            made = self._made[run] = torch.compile(run, *self._args, **self.settings)
        return made

    def clear(self) -> None:
        """Forget programs that are gone."""
        self._made.clear()
