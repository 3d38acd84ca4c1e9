"""The schedule that predicts how far the model's output has moved: EasyCache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.ranks import means
from rfc.schedules.base import Signal, Watched, checked_count
from rfc.schedules.change import ThresholdRule
from rfc.state import Clock, SlotSpec, State


@dataclass(frozen=True, kw_only=True)
class OutputChange(ThresholdRule):
    """Full when the predicted change of the output has added up to enough since the last full step (EasyCache, arXiv 2507.02860).

    With x the stream before the first site, v the one behind it, |.| the mean of absolute values over the batch, and t and t+N the two
    latest full steps: rate = |v(t) - v(t+N)| / |x(t) - x(t+N)|, and step s predicts the relative change rate |x(s) - x(s+1)| / |v(t)|.
    Full when the sum of these reaches `threshold`. The first `warmup` steps are full (at least 2, which a rate needs), and the last where
    `num_steps` is given. With a single full step behind it, the rate is |v(t)| / |x(t)|.
    """

    threshold: float = field()
    warmup: int = 5
    num_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count(type(self).__name__, "warmup", self.warmup, 2)

    @property
    def watches(self) -> tuple[Signal, ...]:
        return ("base",)

    @property
    def remembers(self) -> Literal["full steps", "all steps"]:
        return "all steps"

    @property
    def reads_output(self) -> bool:
        return True

    def slots(self, watched: Mapping[str, SlotSpec]) -> dict[str, SlotSpec]:
        x, scalar = watched["base"], SlotSpec((1,), torch.float32)
        return {"base": x, "anchor": x, "output": watched["output"], "rate": scalar, "size": scalar}

    def refresh(self, old: State, watched: Watched, clock: Clock) -> dict[str, Tensor]:
        x, v = watched["base"], watched.get("output")
        if v is None:
            return {"base": x}
        moves = (x.float() - old["anchor"].float(), v.float() - old["output"].float(), x.float(), v.float())
        moved, changed, length, size = means([move.abs() for move in moves])
        rate = torch.where(clock.n > 0, changed / moved, size / length)
        return {"base": x, "anchor": x, "output": v, "rate": rate.reshape(1), "size": size.reshape(1)}

    def error(self, watched: Watched, state: State, clock: Clock) -> Float[Tensor, ""]:
        (moved,) = means([(watched["base"].float() - state["base"].float()).abs()])
        return (state["rate"] * moved / state["size"]).reshape([])
