"""Summary of a pipeline: what its latest generation computed and skipped, and what was chosen for it."""

from __future__ import annotations

from typing import Any

from rich.console import Group

from rfc_fx.pipelines.accelerated import accelerated
from rfc_fx.pipelines.graphs import ON_THE_CPU, against_graphs
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.summary import as_text


class PipelineSummary:
    """What the latest generation of every denoiser computed and skipped, and how it was made; printable, and a rich renderable."""

    def __init__(self, pipe: Any) -> None:
        state = accelerated(pipe)
        self.models = {name: model.summary() for name, model in state.cached.items()}
        self.choices = "; ".join(f"{name}: {', '.join(_choices(model))}" for name, model in state.cached.items())
        if state.graphs:
            self.choices += "".join(f"; {name} {why}" for name, model in state.cached.items() if (why := without_graphs(pipe, model)))

    def __rich__(self) -> Group:
        return Group(*(summary.table() for summary in self.models.values()), f"{self.choices}")

    def __str__(self) -> str:
        return as_text(self.__rich__())


def without_graphs(pipe: Any, model: CachedModel) -> str:
    """Why a model on a CUDA device runs without CUDA graphs; nothing where it runs with them, or has no such device."""
    reason = against_graphs(pipe, model)
    return "" if reason in (None, ON_THE_CPU) else f"without CUDA graphs: {reason}"


def _choices(model: CachedModel) -> list[str]:
    """What was chosen, in words."""
    config, compiled = model.options, model.compile_settings
    said: list[tuple[Any, str]] = [
        (config.hoist, "hoisted"),
        (config.regional, "equal blocks compiled once"),
        (config.dispatch == "cond", "decided in the graph"),
    ]
    said += [(config.decision == "per_sample", "decided per sample"), (config.speculate, "speculates")]
    said += [(config.granularity, f"granularity {config.granularity}"), (config.state_dtype, f"state in {config.state_dtype}")]
    words = [text for is_so, text in said if is_so]
    settings = "" if compiled is None else ", ".join(f"{name}={value!r}" for name, value in compiled.items())
    return [*words, "not compiled" if compiled is None else f"torch.compile({settings})"]
