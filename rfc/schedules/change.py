"""Schedules that watch how much the network's beginning changes: TeaCache, First-Block cache, DiCache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rfc.ranks import means
from rfc.schedules.base import Numbers, Schedule, Signal, Watched, checked_count, checked_threshold
from rfc.state import Clock, SlotSpec, State


def relative_change(now: Float[Tensor, "*S"], before: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    """mean |now - before| / mean |before| over the whole tensor, in float32."""
    return relative_changes((now, before))[0]


def relative_changes(*pairs: tuple[Float[Tensor, "*S"], Float[Tensor, "*S"]]) -> list[Float[Tensor, ""]]:
    """`relative_change` of each pair (now, before), over the tokens of all ranks."""
    wide = [(now.float(), before.float()) for now, before in pairs]
    magnitudes = means([magnitude for now, before in wide for magnitude in ((now - before).abs(), before.abs())])
    return [moved / length for moved, length in zip(magnitudes[::2], magnitudes[1::2], strict=True)]


class ThresholdRule(Schedule):
    """A threshold, leading full steps, and a last step that is full where the number of steps is known."""

    threshold: float = math.nan  # plain attributes, which the fields of the subclasses can replace
    num_steps: int | None = None

    def __post_init__(self) -> None:
        where = type(self).__name__
        checked_threshold(where, "threshold", self.threshold)
        checked_count(where, "warmup", self.warmup, 1)
        if self.num_steps is not None:
            checked_count(where, "num_steps", self.num_steps, 1)

    def with_threshold(self, threshold: float) -> Self:
        return replace(self, threshold=threshold)  # type: ignore[type-var]

    def exercised(self) -> Self:
        return replace(self, threshold=math.inf, num_steps=self.warmup + 2)  # type: ignore[type-var]  # the "last" step is full

    def slots(self, watched: Mapping[str, SlotSpec]) -> dict[str, SlotSpec]:
        return dict(watched)

    def refresh(self, old: State, watched: Watched, clock: Clock) -> dict[str, Tensor]:
        return dict(watched)

    def numbers(self) -> dict[str, Tensor]:
        last = math.inf if self.num_steps is None else float(self.num_steps - 1)
        return {
            "threshold": torch.tensor(float(self.threshold)),
            "warmup": torch.tensor(float(self.warmup)),
            "last": torch.tensor(last),
        }

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        return (step < numbers["warmup"]) | ~(total < numbers["threshold"]) | (step == numbers["last"])

    def can_skip(self, num_steps: int) -> bool:
        return num_steps > self.warmup + (self.num_steps == num_steps) and self.threshold > 0


@dataclass(frozen=True, kw_only=True)
class StepChange(ThresholdRule):
    """Full when the first site's input has changed enough, step by step, since the last full step (TeaCache, arXiv 2411.19108).

    d(t) = mean |I(t) - I(t+1)| / mean |I(t+1)|, over the batch, from one step to the next; full when sum p(d) >= `threshold`, with p the
    polynomial whose `coefficients` are given from the highest power down (the identity by default; published ones belong to a model).
    The first `warmup` steps are full, and the last where `num_steps` is given.
    """

    threshold: float = field()
    coefficients: Sequence[float] = (1.0, 0.0)
    warmup: int = 1
    num_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        coefficients = tuple(self.coefficients) if isinstance(self.coefficients, Sequence) else ()
        if not coefficients or not all(isinstance(c, int | float) and -1e300 < c < 1e300 for c in coefficients):
            raise ValueError(f"StepChange: coefficients must be finite numbers, the highest power first, got {self.coefficients!r}")
        object.__setattr__(self, "coefficients", tuple(float(c) for c in coefficients))

    @property
    def watches(self) -> tuple[Signal, ...]:
        return ("I",)

    @property
    def remembers(self) -> Literal["full steps", "all steps"]:
        return "all steps"

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (*super().in_graph, self.coefficients)

    def error(self, watched: Watched, state: State, clock: Clock) -> Float[Tensor, ""]:
        d = relative_change(watched["I"], state["I"])
        total = torch.zeros_like(d)
        for coefficient in self.coefficients:  # Horner's rule
            total = total * d + coefficient
        return total


@dataclass(frozen=True, kw_only=True)
class AnchorChange(ThresholdRule):
    """Full when what is watched differs too much from the last full step (First-Block cache of ParaAttention and diffusers; DBCache).

    d(t-k) = mean |I(t-k) - I(t)| / mean |I(t)|, over the batch; full when d >= `threshold`; nothing adds up. With a probe
    (`Method.probe`) I is what the first blocks added to the stream.
    """

    threshold: float = field()
    warmup: int = 1
    num_steps: int | None = None

    @property
    def watches(self) -> tuple[Signal, ...]:
        return ("I",)

    @property
    def accumulates(self) -> bool:
        return False

    def error(self, watched: Watched, state: State, clock: Clock) -> Float[Tensor, ""]:
        return relative_change(watched["I"], state["I"])


@dataclass(frozen=True, kw_only=True)
class ProbeChange(ThresholdRule):
    """Full when the output of the first blocks changes otherwise than their input does (DiCache, arXiv 2508.17356).

    With x the stream and y = x + I what the probed blocks make of it, full when the sum of |d(y) - d(x)| over the steps since the last full
    one reaches `threshold`, d the relative change from one step to the next (`StepChange`); or the sum of d(y), with `against_input=False`.
    """

    threshold: float = field()
    warmup: int = 1
    num_steps: int | None = None
    against_input: bool = True

    @property
    def watches(self) -> tuple[Signal, ...]:
        return ("I", "base")

    @property
    def remembers(self) -> Literal["full steps", "all steps"]:
        return "all steps"

    @property
    def in_graph(self) -> tuple[Any, ...]:
        return (*super().in_graph, self.against_input)

    def error(self, watched: Watched, state: State, clock: Clock) -> Float[Tensor, ""]:
        x, before = watched["base"].float(), state["base"].float()
        y = (x + watched["I"].float(), before + state["I"].float())
        if not self.against_input:
            return relative_change(*y)
        d_y, d_x = relative_changes(y, (x, before))
        return (d_y - d_x).abs()
