"""Spans: the twin of coarser sites. The forwards of whole blocks stand replaced, and a block that is skipped hands its streams on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

from torch import Tensor, nn

from rfc.eager.run import Now, Run
from rfc.granularity import Granularity, block_attention, block_modules
from rfc.phase import FULL, VERIFY

STREAMS = ("hidden_states", "encoder_hidden_states")
"""What blocks call the latent's stream, and the other one of a joint attention."""


Replaced = tuple[nn.Module, Callable[..., Any]]


@contextmanager
def in_place(replaced: Sequence[Replaced]) -> Iterator[None]:
    """While it is open, these stand in the place of the modules' forwards."""
    before = [(module, module.__dict__.get("forward")) for module, _ in replaced]
    try:
        for module, replacement in replaced:
            module.__dict__["forward"] = replacement
        yield
    finally:
        for module, forward in before:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:  # hooks of others stand there
                module.__dict__["forward"] = forward


def spans(model: nn.Module, now: Now, grain: Granularity, probe: int) -> Iterator[Replaced]:
    """Replacements for blocks: each alone, or some or all of them as one. ValueError where the range chooses none."""
    blocks = block_modules(model)
    cached_blocks = blocks[grain.blocks]
    if not cached_blocks:
        raise ValueError(grain.no_blocks(type(model).__name__, len(blocks)))
    if probe >= len(blocks):
        raise ValueError(
            f"{type(model).__name__}: a probe of {probe} blocks leaves none of the {len(blocks)} to skip; probe fewer than {len(blocks)}"
        )
    probed = Probe(now)
    groups = [[block] for block in cached_blocks] if grain.kind == "block" else [cached_blocks]
    for group in groups:
        first = blocks.index(group[0])
        parts = [Block(module, module.forward) for _, module in group]
        span = Span(group[0][0], now, first, parts, probed if probe else None, probe - first, with_base=grain.kind != "output")
        for i, part in enumerate(parts):
            yield part.module, partial(span.forward, i)
        if not probe and (attention := block_attention(parts[0].module)) is not None:
            yield attention, partial(span.enter, attention.forward)
    for i, (_, module) in enumerate(blocks[: min(probe, blocks.index(cached_blocks[0]))]):
        yield module, partial(probed.forward, Block(module, module.forward), i == 0)


class SkipError(Exception):
    """The decision fell inside the first block of a span: leave it."""


@dataclass
class Block:
    """A block as it is, and which of its streams it returns in which order."""

    module: nn.Module
    compute: Callable[..., Any]
    order: tuple[str | None, ...] | None = None
    """None where it returns a tensor, the latent's stream."""

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """The streams that a call hands over, the latent's first."""
        arguments = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs).arguments
        return {name: value for name in STREAMS if isinstance(value := arguments.get(name), Tensor)}

    def returned(self, streams: dict[str, Tensor], output: Any) -> dict[str, Tensor]:
        """The streams that come back, told apart by what they are closest to."""
        if isinstance(output, Tensor):
            return {"hidden_states": output}
        tensors = [value for value in output if isinstance(value, Tensor)]
        fitting = [
            names
            for names in permutations(streams, len(tensors))
            if all(streams[name].shape == value.shape for name, value in zip(names, tensors, strict=True))
        ]
        if not fitting:
            raise ValueError(f"{type(self.module).__name__}: what it returns has not the shapes of its streams {', '.join(streams)}")
        names = iter(min(fitting, key=lambda ns: sum(float((streams[n] - t).norm()) for n, t in zip(ns, tensors, strict=True))))
        self.order = tuple(next(names) if isinstance(value, Tensor) else None for value in output)
        return {name: value for name, value in zip(self.order, output, strict=True) if name is not None}

    def handed_on(self, streams: dict[str, Tensor]) -> Any:
        """The streams as the block would return them."""
        return streams["hidden_states"] if self.order is None else tuple(None if name is None else streams[name] for name in self.order)


@dataclass
class Span:
    """Blocks in a row, as one site for each stream that leaves them."""

    name: str
    now: Now
    first: int
    """Place of its first block in the model."""
    blocks: list[Block]
    probe: Probe | None
    probed: int
    """How many of its blocks the probe takes in: these are never skipped."""
    with_base: bool
    start: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    """I of each stream."""

    def forward(self, place: int, *args: Any, **kwargs: Any) -> Any:
        """In the place of a block's forward."""
        block, run = self.blocks[place], self.now.run
        if run.is_verifying:
            return block.compute(*args, **kwargs)
        streams = block.streams(args, kwargs)
        if place == 0:
            self.start = streams
        if self.probe is not None and place < self.probed:
            return self.probe.forward(block, place == self.first == 0, *args, **kwargs)
        if self.probe is not None and place == max(0, self.probed):
            self.inputs = [self.probe.moved]
            run.decide(I=self.probe.moved, base=self.start["hidden_states"])
        if place > 0 or self.probe is not None:
            output = block.compute(*args, **kwargs) if run.phase == FULL.name else None
        else:
            output = self._first(block, args, kwargs)
        if output is not None:
            returned = block.returned(streams, output)
            if place == len(self.blocks) - 1:
                handed_on = self.refresh(run, returned)
                return block.handed_on(handed_on) if run.method.estimator.corrects else output
            return output
        return block.handed_on(streams if place < len(self.blocks) - 1 else self.estimates(run))

    def _first(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return block.compute(*args, **kwargs)
        except SkipError:
            return None

    def enter(self, attention: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of the first attention: what it is called with is I."""
        if self.now.run.is_verifying:
            return attention(*args, **kwargs)
        self.inputs = [value for value in (*args, *(kwargs.get(name) for name in STREAMS)) if isinstance(value, Tensor)]
        if self.now.run.decide(I=self.inputs[0], base=self.start["hidden_states"]) != FULL.name:
            raise SkipError
        return attention(*args, **kwargs)

    def refresh(self, run: Run, returned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Remember what the span added to each stream; returns the streams that it hands on."""
        run.leave(returned["hidden_states"])
        handed_on = {}
        for name, value in returned.items():
            O = value - self.start[name] if self.with_base else value
            handed_on[name] = value + run.refresh(self.name, STREAMS.index(name), self._input(name), O)
        return handed_on

    def estimates(self, run: Run) -> dict[str, Tensor]:
        """Every stream as it leaves the span."""
        after = dict(self.start)
        for stream in run.streams(self.name):
            name = STREAMS[stream]
            O_hat = run.estimate(self.name, stream, self._input(name))
            after[name] = after[name] + O_hat if self.with_base else O_hat
        return after

    def _input(self, stream: str) -> Tensor:
        place = STREAMS.index(stream)
        return self.inputs[place if place < len(self.inputs) else 0]


@dataclass
class Probe:
    """The first blocks of the model, which always run: what they add to the latent's stream is I."""

    now: Now
    start: Any = None
    after: Any = None

    @property
    def moved(self) -> Tensor:
        moved: Tensor = self.after - self.start
        return moved

    def forward(self, block: Block, is_first: bool, *args: Any, **kwargs: Any) -> Any:
        """In the place of a probed block's forward."""
        streams = block.streams(args, kwargs)
        if is_first:
            self.start = streams["hidden_states"]
        output = block.compute(*args, **kwargs)
        self.after = block.returned(streams, output)["hidden_states"]
        return output


def verifier(last: nn.Module, now: Now, replaced: Callable[..., Any] | None) -> Replaced:
    """A replacement for the last block that computes it once more in phase VERIFY, from what its estimate began with.

    `replaced`: what stands in the place of its forward already.

    The error is mean(|x - x'| / (|x'| + 1e-10)), x the stream that leaves the block by estimates, x' as computed (SpeCa, arXiv 2509.11628).
    """
    block = Block(last, last.forward)
    draft = block.compute if replaced is None else replaced

    def forward(*args: Any, **kwargs: Any) -> Any:
        streams = block.streams(args, kwargs)
        drafted = draft(*args, **kwargs)
        run = now.run
        if run.phase == VERIFY.name:
            run.is_verifying = True
            try:
                real = block.compute(*args, **kwargs)
            finally:
                run.is_verifying = False
            x, x_real = (block.returned(streams, output)["hidden_states"].float() for output in (drafted, real))
            run.verified_error = float(((x - x_real).abs() / (x_real.abs() + 1e-10)).mean())
        return drafted

    return last, forward
