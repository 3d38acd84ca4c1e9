"""The twin: the same methods by wrapping modules in Python, written to be read.

It is the reference that the compiler is tested against and the eager side of the benchmarks. While a cached model runs,
the `forward` of every attention and MLP stands replaced by a `Site`, that of blocks by a part of a `Span` (`blocks.py`); between calls the
model is untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rfc.arguments import timestep_argument, timestep_value
from rfc.conditioning import ConditioningGroups, conditioning, group_name
from rfc.eager.blocks import in_place, spans, verifier
from rfc.eager.module_sites import module_sites
from rfc.eager.prediction import prediction
from rfc.eager.predictor import predictions
from rfc.eager.run import Now, Run
from rfc.eager.token_wise import passages
from rfc.granularity import block_modules, parse_granularity
from rfc.method import Method
from rfc.phase import is_partial, phase_named
from rfc.published import predicted_by
from rfc.record import Direction, Record
from rfc.state import spec_of


def cached(model: nn.Module, method: Method, granularity: str | None = None) -> CachedEager:
    """Return `model` behind feature caching in eager mode: same call, same outputs.

    `granularity`: what one estimate stands for; default the method's own or its default, else "module". Raises TypeError when `method` is
    none, ValueError when the model has no module that could be cached, or for an unknown granularity.
    """
    if not isinstance(method, Method):
        raise TypeError(f"cached: method must be an rfc method such as rfc.RFC(tau=0.1), got {method!r}")
    if any(hook.startswith("cp_") for module in model.modules() for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", ())):
        raise ValueError(
            f"{type(model).__name__}: its sequence is split over ranks (context parallel), each of which would decide by its own tokens "
            "here; use rfc_fx.transform, which completes sums over all of them"
        )
    return CachedEager(model, method, granularity or method.granularity or method.default_granularity or "module")


class CachedEager(nn.Module):
    """A model under feature caching, in eager mode; `stats` is the current generation's record."""

    def __init__(self, model: nn.Module, method: Method, granularity: str) -> None:
        super().__init__()
        self.model = model
        self.method = method.within(granularity)
        self.granularity = granularity
        self._name: str | None = None
        self._runs: dict[str, Run] = {}
        self._streams = ConditioningGroups()
        self._direction = Direction()
        self._now = Now(Run(self.method, method.schedule.numbers()))
        grain = parse_granularity(granularity)
        tokens = method.tokens if any(map(is_partial, method.schedule.branches)) else None
        if tokens is not None and grain.kind != "module":
            raise ValueError(
                f"{type(model).__name__}: PARTIAL steps compute tokens of modules, not of {granularity!r}; leave granularity out"
            )
        if (predicted := predicted_by(method)) is not None:
            self._replaced = list(predictions(model, self._now, predicted))
        elif grain.kind == "module":
            self._replaced = list(module_sites(model, self._now, tokens))
        elif grain.kind == "prediction":
            if method.estimator.needs_input or method.probe or method.schedule.reads_output:
                raise ValueError(
                    f"{type(model).__name__}: {method.name} reads the blocks' input or output, which has another shape than what the model "
                    "returns; granularity must be 'output' or a finer one, got 'prediction'"
                )
            self._replaced = list(prediction(model, self._now))
        else:
            self._replaced = list(spans(model, self._now, grain, method.probe))
        if any(phase_named(name).verifies for name in method.schedule.branches):
            _, last = block_modules(model)[-1]
            standing = next((call for module, call in self._replaced if module is last), None)
            self._replaced = [(module, call) for module, call in self._replaced if module is not last]
            self._replaced.append(verifier(last, self._now, standing))
        if any(phase_named(name).reads_last for name in method.schedule.branches):
            self._replaced += passages(model, self._now)
        self._timestep = timestep_argument(model.forward)
        self._signature = inspect.signature(model.forward)
        if not self._replaced:
            raise ValueError(f"{type(model).__name__}: no attention (with to_q) or feed-forward module found to cache")

    @property
    def stats(self) -> Record:
        """Phases, eps and NFC of the current generation (of the context that ran last)."""
        return self._now.run.generation

    @property
    def contexts(self) -> dict[str, Record]:
        """Records of the latest generation by context."""
        return {name: run.generation for name, run in self._runs.items()}

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Name the state set that calls inside use; without a name, calls with different conditioning get one each.

        `where` (step_index, sigma, ...), which some pipelines add, is not needed.
        """
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before

    def reset(self) -> None:
        """Start a new generation at the next call, in every context."""
        for run in self._runs.values():
            run.generation = Record()
        self._streams.forget()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs).arguments
        timestep = timestep_value(bound.get(self._timestep)) if self._timestep else None
        name = self._name or group_name(self._streams.find(self._conditioning(bound), lambda place: self._is_over(place, timestep)))
        schedule = self.method.schedule.for_pass(name)
        self._now.run = self._runs.setdefault(name, Run(self.method.with_schedule(schedule), schedule.numbers()))
        shapes = tuple(spec_of(value) for value in bound.values() if isinstance(value, Tensor))
        self._now.run.begin(timestep, shapes, self._direction)
        try:
            with in_place(self._replaced):
                return self.model(*args, **kwargs)
        except BaseException:
            self._now.run.generation = Record()  # the step counted, but some of its sites were not refreshed
            raise

    def _conditioning(self, arguments: dict[str, Any]) -> dict[str, Tensor]:
        latent = next((name for name, value in arguments.items() if isinstance(value, Tensor)), "")
        return conditioning(arguments, latent, self._timestep)

    def _is_over(self, place: int, timestep: float | None) -> bool:
        generation = self._runs[group_name(place)].generation
        return generation.step == 0 or not generation.continues(timestep, self._direction)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)
