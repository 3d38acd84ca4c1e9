"""The twin: the same methods by wrapping modules in Python, written to be read.

It is the reference that the compiler is tested against and the eager side of the benchmarks. While a cached model runs,
the `forward` of every attention and MLP stands replaced by a `Site`, that of blocks by a part of a `Span` (`blocks.py`); between calls the
model is untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rfc.arguments import timestep_argument, timestep_value
from rfc.conditioning import ConditioningGroups, conditioning, group_name
from rfc.eager.blocks import Replaced, in_place, spans, verifier
from rfc.eager.predictor import predictions
from rfc.eager.run import Now, Run, spec_of
from rfc.eager.token_wise import Chooser, Scorer, choosers, passages
from rfc.estimators.predicted import predicted_by
from rfc.generation import Direction, Generation
from rfc.granularity import block_modules, parse_granularity
from rfc.method import Method
from rfc.phase import is_partial, phase_named
from rfc.token_selection import Tokens


def cached(model: nn.Module, method: Method, granularity: str | None = None) -> CachedEager:
    """Return `model` behind feature caching in eager mode: same call, same outputs.

    `granularity`: what one estimate stands for; default the method's own, else "module". Raises TypeError when `method` is none, ValueError
    when the model has no module that could be cached, or for an unknown granularity.
    """
    if not isinstance(method, Method):
        raise TypeError(f"cached: method must be an rfc method such as rfc.RFC(tau=0.1), got {method!r}")
    return CachedEager(model, method, granularity or method.granularity or "module")


@dataclass
class _Site:
    """A module, or a parallel pair of modules, whose output is computed or estimated."""

    name: str
    now: Now
    compute: Callable[..., Any]
    scorer: Scorer | None = None
    chooser: Chooser | None = None

    @property
    def run(self) -> Run:
        return self.now.run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.run.is_verifying:
            return self.compute(*args, **kwargs)
        inputs = self.inputs(args, kwargs)
        phase = self.run.decide(I=inputs[0])
        if phase == "FULL":
            compute = partial(self.compute, *args, **kwargs)
            output = compute() if self.scorer is None else self.scorer.compute(self.run, compute, inputs)
            outputs = output if isinstance(output, tuple) else (output,)
            for stream, (I, O) in enumerate(zip(inputs, outputs, strict=False)):
                self.refresh(stream, I, O)
            if self.chooser is not None:
                self.chooser.keep(self.run, inputs[0])
            return output
        if is_partial(phase) and self.chooser is not None:
            self.chooser.compute(self.run, self.compute, inputs[0])
        estimates = tuple(self.estimate(stream, inputs[stream]) for stream in self.run.streams(self.name))
        return estimates if len(estimates) > 1 else estimates[0]

    @staticmethod
    def inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        named = [kwargs[name] for name in ("hidden_states", "encoder_hidden_states") if name in kwargs]
        return [value for value in (*args, *named) if isinstance(value, Tensor)]

    def refresh(self, stream: int, I: Tensor, O: Tensor) -> None:
        self.run.refresh(self.name, stream, I, O)

    def estimate(self, stream: int, I: Tensor) -> Tensor:
        return self.run.estimate(self.name, stream, I)


@dataclass
class _ParallelSite(_Site):
    """Attention and MLP side by side that share their input and leave through one projection (FLUX's single blocks).

    On a skipped step the two inner modules return uninitialised tensors of the right shape, and the projection the estimate.
    """

    I: Tensor | None = None
    width: int = 0

    def enter_attention(self, *args: Any, **kwargs: Any) -> Any:
        self.I = self.inputs(args, kwargs)[0]
        if self.run.is_verifying or self.run.decide(I=self.I) == "FULL":
            return self.compute(*args, **kwargs)
        return torch.empty_like(self.I)

    def enter_mlp(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return forward(x) if self.run.is_verifying or self.run.decide(I=x) == "FULL" else x.new_empty(*x.shape[:-1], self.width)

    def leave(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        assert self.I is not None
        if self.run.is_verifying:
            return forward(x)
        if self.run.phase == "FULL":
            O = forward(x)
            self.refresh(0, self.I, O)
            return O
        return self.estimate(0, self.I)


class CachedEager(nn.Module):
    """A model under feature caching, in eager mode; `stats` is the current generation's record."""

    def __init__(self, model: nn.Module, method: Method, granularity: str) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.granularity = granularity
        self._name: str | None = None
        self._runs: dict[str, Run] = {}
        self._streams = ConditioningGroups()
        self._direction = Direction()
        self._now = Now(Run(method, method.schedule.numbers()))
        grain = parse_granularity(granularity)
        tokens = method.tokens if any(map(is_partial, method.schedule.branches)) else None
        if tokens is not None and grain.kind != "module":
            raise ValueError(
                f"{type(model).__name__}: PARTIAL steps compute tokens of modules, not of {granularity!r}; leave granularity out"
            )
        if (predicted := predicted_by(method)) is not None:
            self._replaced = list(predictions(model, self._now, predicted))
        elif grain.kind == "module":
            self._replaced = list(_sites(model, self._now, tokens))
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
    def stats(self) -> Generation:
        """Phases, eps and NFC of the current generation (of the context that ran last)."""
        return self._now.run.generation

    @property
    def contexts(self) -> dict[str, Generation]:
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
            run.generation = Generation()
        self._streams.forget()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs).arguments
        timestep = timestep_value(bound.get(self._timestep)) if self._timestep else None
        name = self._name or group_name(self._streams.find(self._conditioning(bound), lambda place: self._is_over(place, timestep)))
        self._now.run = self._runs.setdefault(name, Run(self.method, self.method.schedule.numbers()))
        shapes = tuple(spec_of(value) for value in bound.values() if isinstance(value, Tensor))
        self._now.run.begin(timestep, shapes, self._direction)
        try:
            with in_place(self._replaced):
                return self.model(*args, **kwargs)
        except BaseException:
            self._now.run.generation = Generation()  # the step counted, but some of its sites were not refreshed
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


def _sites(model: nn.Module, now: Now, tokens: Tokens | None) -> Iterator[Replaced]:
    """Attention modules (they project to queries), feed-forward modules, and parallel blocks of both.

    In repeated blocks, where the model has them: what stands before the blocks may never see the latent.
    """
    found = list(_modules(model))
    chooser = {} if tokens is None else choosers([name for name, _ in found], tokens)
    for name, module in found:
        children = dict(module.named_children())
        if children.keys() >= _PARALLEL:
            attention, mlp, projection = children["attn"], children["proj_mlp"], children["proj_out"]
            width = getattr(mlp, "out_features", None)
            if not isinstance(width, int):
                raise ValueError(f"{name}.proj_mlp: expected a linear layer with out_features, got {type(mlp).__name__}")
            site = _ParallelSite(name, now, attention.forward, width=width)
            yield attention, site.enter_attention
            yield mlp, partial(site.enter_mlp, mlp.forward)
            yield projection, partial(site.leave, projection.forward)
        elif hasattr(module, "to_q"):
            scorer = None if tokens is None or tokens.score == "random" else Scorer(name, module, tokens.score)
            yield module, _Site(name, now, module.forward, scorer)
        else:
            yield module, _Site(name, now, module.forward, chooser=chooser.get(name))


_PARALLEL = {"attn", "proj_mlp", "proj_out"}


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside: set[int] = set()
    modules = list(model.named_modules())
    repeated = [(name, module) for name, module in modules if any(part.isdigit() for part in name.split("."))]
    for name, module in repeated or modules:
        children = dict(module.named_children())
        is_parallel = children.keys() >= _PARALLEL
        if id(module) not in inside and (is_parallel or hasattr(module, "to_q") or type(module).__name__ == "FeedForward"):
            parts = [children[part] for part in _PARALLEL] if is_parallel else [module]
            inside |= {id(one) for part in parts for one in part.modules()}
            yield name, module
