"""Partial: the twin of token-wise steps. Attention leaves scores, feed-forwards are called with some tokens, blocks are passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rfc.eager.blocks import Block, Replaced
from rfc.eager.run import Now, Run
from rfc.granularity import block_modules, block_of
from rfc.phase import phase_named
from rfc.token_selection import Operands, Place, Score, Tokens, aged, layers, renewed, take, token_score


class _Seen(TorchFunctionMode):
    """Takes note of the first scaled dot-product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: Operands | None = None
        self.scale: float | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.operands is None:
            arguments = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            self.operands = Operands(arguments["query"], arguments["key"], arguments["value"], arguments.get("attn_mask"))
            self.scale = arguments.get("scale")
        return func(*args, **kwargs)


@dataclass
class Scorer:
    """Of an attention module: what its full computation says about the tokens of each of its streams."""

    name: str
    module: nn.Module
    kind: Score

    def compute(self, run: Run, compute: Callable[[], Any], inputs: list[Tensor]) -> Any:
        """Run the module; the first attention of a block to its own tokens leaves their scores."""
        with _Seen() as seen:
            output = compute()
        if seen.operands is not None and not run.scores.get(block_of(self.name)):
            run.scores[block_of(self.name)] = [
                token_score(self.kind, seen.operands, seen.scale, own) for own in self._own(seen.operands.v, inputs)
            ]
        return output

    def _own(self, v: Tensor, inputs: list[Tensor]) -> list[slice]:
        """Which keys are the tokens of each stream; none where the keys are those of something else."""
        counts = [I.shape[1] for I in inputs[:2]]
        if v.shape[-2] == counts[0]:
            return [slice(0, counts[0])]
        if v.shape[-2] != sum(counts):
            return []
        values = self.module.to_v(inputs[0])  # type: ignore[operator]
        first = torch.equal(v[:, :, : counts[0]].transpose(1, 2).flatten(2), values)  # some models put the text before the image
        return [slice(0, counts[0]), slice(counts[0], None)] if first else [slice(counts[1], None), slice(0, counts[1])]


@dataclass
class Chooser:
    """Of a feed-forward: it computes some tokens, and remembers the others."""

    name: str
    tokens: Tokens
    layer: int
    layers: int

    def keep(self, run: Run, I: Tensor) -> None:
        """After a full step: no token has an age, and each has a score."""
        state: dict[str, Tensor] = {"age": I.new_zeros(I.shape[:2], dtype=torch.float32)}
        if self.tokens.score != "random":
            state["score"] = self._score(run, I.shape[1])
        run.token_states[self.name] = state

    def _score(self, run: Run, count: int) -> Tensor:
        layers = [i for i, score in enumerate(run.scores.get(block_of(self.name), [])) if score.shape[1] == count]
        if not layers:
            raise ValueError(f"{self.name}: no attention of its {count} tokens to themselves before it in its block could score them")
        return run.scores[block_of(self.name)][layers[-1] if "context" in self.name else layers[0]]

    def compute(self, run: Run, compute: Callable[[Tensor], Tensor], I: Tensor) -> None:
        """Compute the tokens that the step's phase wants, and put them into the state."""
        assert run.phase is not None
        assert run.clock is not None
        state, site = run.token_states[self.name], (self.name, 0)
        grid = self.tokens.grid_of(I.shape[1]) if I.shape[1] == run.tokens else None
        place = Place(self.layer, self.layers, I.shape[1], grid)
        count = self.tokens.count(run.phase, place)
        if count == 0:
            run.token_states[self.name] = {**state, "age": aged(state["age"])}
            return
        period = run.numbers["period"].to(I.device)
        indices = self.tokens.choose(state, place, count, period, run.clock)
        rows = take(I, indices)
        run.states[site] = renewed(run.method.estimator, run.states[site], indices, rows, compute(rows), run.clock)
        run.token_states[self.name] = {**state, "age": aged(state["age"], indices)}


def choosers(names: Iterable[str], tokens: Tokens) -> dict[str, Chooser]:
    """A chooser for the tokens of each named module."""
    return {name: Chooser(name, tokens, *place) for name, place in layers(names).items()}


def passages(model: nn.Module, now: Now) -> Iterator[Replaced]:
    """Replacements for all blocks: in phase REUSE each hands its streams on, and the last what left it in the latest step that ran it."""
    blocks = [Block(module, module.forward) for _, module in block_modules(model)]
    for block in blocks:
        yield block.module, partial(_pass, now, block, block is blocks[-1])


def _pass(now: Now, block: Block, is_last: bool, *args: Any, **kwargs: Any) -> Any:
    run, streams = now.run, block.streams(args, kwargs)
    phase = phase_named(run.decide(I=streams["hidden_states"]))
    if phase.reads_last:
        return block.handed_on({**streams, "hidden_states": run.last} if is_last and run.last is not None else streams)
    output = block.compute(*args, **kwargs)
    returned = block.returned(streams, output)
    if is_last and phase.keeps_last:
        run.last = returned["hidden_states"]
    return output
