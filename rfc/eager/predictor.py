"""DisCa: at a skipped step a small trained network stands in the place of all blocks (arXiv 2602.05449).

The cache is one tensor, the stream that left the last block at the latest full step. The predictor is a folder with `predictor.json` and
`predictor.safetensors`; its blocks are of the model's own class, and are called with what the model calls its first block with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from rfc.eager.blocks import Block, Replaced, in_place
from rfc.eager.run import Now
from rfc.estimators.predicted import Predicted
from rfc.granularity import block_modules
from rfc.phase import FULL
from rfc.predictor import Predictor, PredictorError, same_blocks


def predict(predictor: Predictor, block: Block, cache: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stream behind the last block, from the call of the first one; PredictorError for a stream that the predictor is not for."""
    x = _stream(block, args, kwargs)
    where = type(block.module).__name__
    if x.dim() != 3 or x.shape[-1] != predictor.channels:
        raise PredictorError(
            f"DisCa: {where} takes a stream of shape {tuple(x.shape)}, the predictor one of (N, T, {predictor.channels}); "
            "it was trained for another model"
        )

    def call(own: nn.Module, h: Tensor) -> Tensor:
        named = "hidden_states" in kwargs
        output = own(*args, **{**kwargs, "hidden_states": h}) if named else own(h, *args[1:], **kwargs)
        return _one_stream(where, output)

    h: Tensor = predictor(x, cache, call)
    return h


def _stream(block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    streams = block.streams(args, kwargs)
    if "hidden_states" not in streams:
        raise PredictorError(f"DisCa: {type(block.module).__name__} is called without hidden_states, the stream that a predictor forecasts")
    return streams["hidden_states"]


def _one_stream(where: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise PredictorError(
            f"DisCa: {where} returns {type(output).__name__}, expected one tensor: a predictor stands in for blocks of one stream of "
            "tokens; use a method without a predictor (rfc.TaylorSeerLite)"
        )
    return output


@dataclass
class Prediction:
    """All blocks as one site of the twin: computed, or forecast in the place of the first and handed on by the others."""

    name: str
    now: Now
    predictor: Predictor
    blocks: list[Block]
    x: Tensor | None = None

    def forward(self, place: int, *args: Any, **kwargs: Any) -> Tensor:
        """In the place of a block's forward."""
        block, run = self.blocks[place], self.now.run
        if place == 0:
            self.x = _stream(block, args, kwargs)
            run.decide(I=self.x)
        if run.phase == FULL.name:
            output = _one_stream(type(block.module).__name__, block.compute(*args, **kwargs))
            if place == len(self.blocks) - 1:
                assert self.x is not None
                run.refresh(self.name, 0, self.x, output)
            return output
        if place == 0:
            return predict(self.predictor, block, run.states[self.name, 0]["O"], args, kwargs)
        return _stream(block, args, kwargs)


def predictions(model: nn.Module, now: Now, estimator: Predicted) -> Iterator[Replaced]:
    """The twin's replacements for the blocks; see `Predicted.load` for what is raised."""
    predictor = estimator.load(model)
    blocks = [Block(module, module.forward) for _, module in block_modules(model)]
    site = Prediction(block_modules(model)[0][0], now, predictor, blocks)
    for place, block in enumerate(blocks):
        yield block.module, partial(site.forward, place)


@contextmanager
def skipping(model: nn.Module, predictor: Predictor, cache: Callable[[], Tensor], seen: Callable[[Tensor], object]) -> Iterator[None]:
    """While it is open, the model runs as in a skipped step, from the tensor that `cache` returns; `seen` gets each forecast."""
    blocks = [Block(module, module.forward) for _, module in same_blocks(model)]

    def first(*args: Any, **kwargs: Any) -> Tensor:
        h = predict(predictor, blocks[0], cache(), args, kwargs)
        seen(h)
        return h

    def after(block: Block, *args: Any, **kwargs: Any) -> Tensor:
        return _stream(block, args, kwargs)

    with in_place([(blocks[0].module, first), *((block.module, partial(after, block)) for block in blocks[1:])]):
        yield
