"""Recording: one generation in full computation, as a linear prediction is fitted to it."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor

import rfc_fx
from rfc.estimators.linear_prediction import LinearPrediction
from rfc.method import Method
from rfc.placement.fitted import Recorded
from rfc.placement.noise_levels import noise_levels
from rfc.placement.output_gains import output_gains
from rfc.placement.weighted import Weighted
from rfc.schedules.base import NoiseLevels
from rfc_fx.errors import RFCError
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.tools.sources import Source


class TuningError(RFCError):
    """A goal that cannot be reached, or a model or sampler that nothing can be fitted to."""


def every_step_full(steps: int, order: int = 3, granularity: Literal["stack", "prediction"] = "stack") -> Method:
    """Full computation on the programs of a linear prediction."""
    schedule = Weighted(full_steps=range(steps), num_steps=steps, weights=[(0.0,) * order] * steps)
    return Method(estimator=LinearPrediction(order=order), schedule=schedule, default_granularity=granularity, name="FullCompute")


def recorded(source: Source, scheduler: Any, steps: int) -> Recorded:
    """Draw every seed of the source in full, and keep how the outputs of the steps' last blocks lie to each other.

    Raises TuningError where a generation has other calls than steps, or the sampler's gains cannot be had.
    """
    cached = rfc_fx.transform(source.model, every_step_full(steps))
    taken = Outputs(cached, steps)
    hook = cached.register_forward_hook(taken.take)
    try:
        with timesteps_asked(scheduler) as asked, warnings.catch_warnings():
            for said in (StepsMismatchWarning, NothingSkippedWarning):  # an error says the one, and the other is meant
                warnings.simplefilter("ignore", said)
            for seed in source.seeds:
                with cached.generation():
                    source.draw(cached, seed, steps, lambda: None)
    finally:
        hook.remove()
    gains, levels = gains_and_levels(scheduler, asked[-1] if asked else {"num_inference_steps": steps})
    if taken.generations == 0 or len(gains) != steps:
        calls = len(gains) if len(gains) != steps else taken.most
        what = f"calls {cached.model_name} {calls} times in {steps} steps" if calls != steps else "begins anew within a generation"
        raise TuningError(
            f"tune: {type(scheduler).__name__} {what}; expected one call a step: pass --steps as the pipeline takes them, or another "
            "--scheduler"
        )
    return Recorded(taken.gram, gains, levels, taken.predictions)


def gains_and_levels(scheduler: Any, asked: dict[str, Any]) -> tuple[tuple[float, ...], NoiseLevels]:
    """Those of a generation for which `set_timesteps` was called with these arguments; TuningError where they cannot be had."""
    others = {name: value for name, value in asked.items() if name != "num_inference_steps"}
    count = asked.get("num_inference_steps")
    try:
        return output_gains(scheduler, count, **others), noise_levels(scheduler, count, **others)
    except ValueError as error:
        raise TuningError(f"tune: {error}") from error


class Outputs:
    """Takes what every step's last blocks and the model itself gave, the first out of the state, and sums up their inner products."""

    def __init__(self, cached: rfc_fx.CachedModel, steps: int) -> None:
        self.cached, self.steps = cached, steps
        self.gram, self.predictions = torch.zeros(2, steps, steps, dtype=torch.float64).unbind()
        self.generations = self.most = 0
        self._held: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """Of the contexts, by their identity: while a generation runs they live."""

    def take(self, model: Any, args: Any, output: Any) -> None:
        """After a step."""
        context = self.cached.driver.generations.recent().latest
        assert context is not None
        if context.book.step == 1:
            self._held[id(context)] = []
        rows = self._held.setdefault(id(context), [])
        blocks = [tensor for name, tensor in context.state.items() if name.endswith(".O")]
        returned = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        rows.append((_row(blocks), _row(returned)))
        self.most = max(self.most, len(rows))
        if len(rows) == self.steps:
            for gram, kept in zip((self.gram, self.predictions), zip(*self._held.pop(id(context)), strict=True), strict=True):
                stacked = torch.stack(kept).double()
                gram += stacked @ stacked.T
            self.generations += 1


def _row(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).to("cpu", copy=True)


@contextmanager
def timesteps_asked(scheduler: Any) -> Iterator[list[dict[str, Any]]]:
    """The arguments with which `set_timesteps` is called meanwhile, without the device."""
    asked: list[dict[str, Any]] = []
    own = scheduler.set_timesteps
    names = inspect.signature(own)

    @functools.wraps(own)  # pipelines look at its signature
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        given = dict(names.bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        given.pop("device", None)
        asked.append({name: value for name, value in given.items() if value is not None})
        return own(*args, **kwargs)

    scheduler.set_timesteps = set_timesteps
    try:
        yield asked
    finally:
        del scheduler.set_timesteps
