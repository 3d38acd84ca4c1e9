"""What a model gives over a generation of drifting inputs, and how far two such results lie apart."""

from collections.abc import Sequence
from typing import Any

import torch
from families import moved, sample
from torch import Tensor


@torch.no_grad()
def predictions(model: Any, kwargs: dict[str, Any], steps: int = 10) -> list[Tensor]:
    """The outputs of a generation, step by step."""
    return [sample(model(**moved(kwargs, i, steps))) for i in range(steps)]


def generation(model: Any, kwargs: dict[str, Any], steps: int = 10) -> Tensor:
    """The same as one tensor, steps outermost."""
    return torch.stack(predictions(model, kwargs, steps))


def difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())


def largest_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest of a step."""
    return max(difference(x, y) for x, y in zip(a, b, strict=True))
