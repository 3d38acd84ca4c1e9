"""Granularity: what one estimate stands for, and which block a module lies in."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

from torch import nn

GranularityName = Literal["module", "block", "stack"]

WITHIN_BLOCKS: tuple[GranularityName, ...] = ("module", "block")
"""A block has one or more of these."""

WHOLE = ("output", "prediction")
"""One estimate for an output itself, that of all blocks or that of the model, in the place of a residual."""


class Granularity(NamedTuple):
    """Extent of one estimate."""

    kind: Literal["module", "block", "stack", "output", "prediction", "blocks"]
    blocks: slice = slice(None)
    """Of "blocks": which, in the order in which they run."""

    def __str__(self) -> str:
        if self.kind != "blocks":
            return self.kind
        return f"blocks[{'' if self.blocks.start is None else self.blocks.start}:{'' if self.blocks.stop is None else self.blocks.stop}]"

    def no_blocks(self, model: str, count: int) -> str:
        """The error text where the range is empty in a model of `count` blocks."""
        return (
            f"{model}: granularity {self} chooses none of the {count} blocks; "
            f"expected blocks[a:b] with 0 <= a < b <= {count}, or a method that leaves out or probes fewer than {count} blocks"
        )


def parse_granularity(text: str, *more: str) -> Granularity:
    """Return "module", "block", "stack", "output" (of all blocks, itself), "prediction" (what the model returns) or "blocks[a:b]", parsed.

    Raises ValueError for anything else; `more`: what else the caller takes, for the message.
    """
    if text in (*get_args(GranularityName), *WHOLE):
        return Granularity(text)  # type: ignore[arg-type]
    if isinstance(text, str) and (match := re.fullmatch(r"blocks\[(-?\d+)?:(-?\d+)?\]", text)):
        first, last = (None if part is None else int(part) for part in match.groups())
        return Granularity("blocks", slice(first, last))
    known = ", ".join((*get_args(GranularityName), *WHOLE, "blocks[a:b] (such as blocks[1:])", *more))
    raise ValueError(f"granularity must be one of {known}, got {text!r}")


def block_of(path: str) -> str:
    """Path up to the first index: `blocks.3.attn` lies in `blocks.3`; "" outside of all blocks."""
    parts = path.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if index is None else ".".join(parts[: index + 1])


def block_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated blocks with attention, in the order in which they run; ValueError when there is none."""
    blocks: list[tuple[str, nn.Module]] = []
    for name, children in model.named_children():
        if isinstance(children, nn.ModuleList):
            blocks += [(f"{name}.{i}", block) for i, block in enumerate(children) if block_attention(block) is not None]
    if not blocks:
        raise ValueError(f"{type(model).__name__}: no list of blocks with attention (to_q) found to cache")
    return blocks


def block_attention(block: nn.Module) -> nn.Module | None:
    return next((module for module in block.modules() if hasattr(module, "to_q")), None)
