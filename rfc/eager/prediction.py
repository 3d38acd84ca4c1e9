"""Prediction: the twin of the coarsest site. The model's own forward stands replaced; a skipped step leaves it at its first attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc.eager.blocks import Block, Replaced, SkipError
from rfc.eager.run import Now
from rfc.granularity import block_attention, block_modules
from rfc.phase import FULL


class Prediction:
    """What the model returns, as one site for each tensor of it."""

    def __init__(self, now: Now, first: Block) -> None:
        self.now, self.first = now, first
        self.start: Tensor | None = None
        """The latent's stream where the blocks begin."""
        self.spec: pytree.TreeSpec | None = None

    def forward(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of the model's forward."""
        try:
            output = compute(*args, **kwargs)
        except SkipError:
            assert self.spec is not None
            run = self.now.run
            return pytree.tree_unflatten([run.estimate("prediction", i, self.I) for i in run.streams("prediction")], self.spec)
        tensors, self.spec = pytree.tree_flatten(output)
        handed_on = [O + self.now.run.refresh("prediction", i, self.I, O) for i, O in enumerate(tensors)]
        return pytree.tree_unflatten(handed_on, self.spec) if self.now.run.method.estimator.corrects else output

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of the first block's forward."""
        self.start = self.first.streams(args, kwargs)["hidden_states"]
        return self.first.compute(*args, **kwargs)

    def enter(self, attention: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of the first attention: what it is called with is I."""
        self.I = next(value for value in (*args, kwargs.get("hidden_states")) if isinstance(value, Tensor))
        assert self.start is not None
        if self.now.run.decide(I=self.I, base=self.start) != FULL.name:
            raise SkipError
        return attention(*args, **kwargs)


def prediction(model: nn.Module, now: Now) -> Iterator[Replaced]:
    """Replacements for the model, its first block and that block's attention."""
    _, block = block_modules(model)[0]
    if (attention := block_attention(block)) is None:
        raise ValueError(f"{type(model).__name__}: its first block has no attention, where a skipped step is left")
    whole = Prediction(now, Block(block, block.forward))
    yield model, partial(whole.forward, model.forward)
    yield block, whole.begin
    yield attention, partial(whole.enter, attention.forward)
