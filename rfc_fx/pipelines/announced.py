"""Announced: a pipeline's first call says what takes so long."""

from __future__ import annotations

import sys
import weakref
from typing import Any

from rich.console import Console
from torch import nn

from rfc_fx.pipelines.modular import progress_is_hidden
from rfc_fx.runtime.cached_model import Build


def announced(pipe: Any, build: Build) -> Build:
    """The same with a line that says what takes so long, unless the pipeline's progress bar is off."""

    def build_and_say(model: nn.Module, *args: Any) -> Any:
        if progress_is_hidden(pipe_of()):
            return build(model, *args)
        console, name = Console(file=sys.stderr), type(model).__name__
        with console.status(f"rfc-fx: capturing {name} for this call"):
            built = build(model, *args)
        console.print(f"rfc-fx: captured {name}: {built.plan.count}; its first steps take longer where they are compiled")
        return built

    pipe_of = weakref.ref(pipe)
    return build_and_say
