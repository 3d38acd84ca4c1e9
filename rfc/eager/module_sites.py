"""Modules of the twin: attention and feed-forward modules, and parallel pairs of them, computed or estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rfc.eager.blocks import Replaced
from rfc.eager.run import Now, Run
from rfc.eager.token_wise import Chooser, Scorer, choosers
from rfc.phase import FULL, is_partial
from rfc.token_selection import Tokens


@dataclass
class ModuleSite:
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
        if phase == FULL.name:
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
class ParallelSite(ModuleSite):
    """Attention and MLP side by side that share their input and leave through one projection (FLUX's single blocks).

    On a skipped step the two inner modules return uninitialised tensors of the right shape, and the projection the estimate.
    """

    I: Tensor | None = None
    width: int = 0

    def enter_attention(self, *args: Any, **kwargs: Any) -> Any:
        self.I = self.inputs(args, kwargs)[0]
        if self.run.is_verifying or self.run.decide(I=self.I) == FULL.name:
            return self.compute(*args, **kwargs)
        return torch.empty_like(self.I)

    def enter_mlp(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return forward(x) if self.run.is_verifying or self.run.decide(I=x) == FULL.name else x.new_empty(*x.shape[:-1], self.width)

    def leave(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        assert self.I is not None
        if self.run.is_verifying:
            return forward(x)
        if self.run.phase == FULL.name:
            O = forward(x)
            self.refresh(0, self.I, O)
            return O
        return self.estimate(0, self.I)


def module_sites(model: nn.Module, now: Now, tokens: Tokens | None) -> Iterator[Replaced]:
    """Attention modules (they project to queries), feed-forward modules, and parallel blocks of both.

    In repeated blocks, where the model has them: what stands before the blocks may never see the latent.
    """
    modules = list(_modules(model))
    chooser = {} if tokens is None else choosers([name for name, _ in modules], tokens)
    for name, module in modules:
        children = dict(module.named_children())
        if children.keys() >= _PARALLEL:
            attention, mlp, projection = children["attn"], children["proj_mlp"], children["proj_out"]
            width = getattr(mlp, "out_features", None)
            if not isinstance(width, int):
                raise ValueError(f"{name}.proj_mlp: expected a linear layer with out_features, got {type(mlp).__name__}")
            site = ParallelSite(name, now, attention.forward, width=width)
            yield attention, site.enter_attention
            yield mlp, partial(site.enter_mlp, mlp.forward)
            yield projection, partial(site.leave, projection.forward)
        elif hasattr(module, "to_q"):
            scorer = None if tokens is None or tokens.score == "random" else Scorer(name, module, tokens.score)
            yield module, ModuleSite(name, now, module.forward, scorer)
        else:
            yield module, ModuleSite(name, now, module.forward, chooser=chooser.get(name))


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
            inside |= {id(module) for part in parts for module in part.modules()}
            yield name, module
