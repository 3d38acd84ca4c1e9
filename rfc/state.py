"""What a site remembers between steps, and how a full step refreshes it: anchors and their differences.

A state is a plain mapping from slot names to tensors, a value: refreshing returns a new one and changes nothing.
Slots: `O`, `dO1` .. `dOm` (output and its differences), `I`, `dI1` .. `dIm` (input), and per-sample scalars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.ranks import summed

State = Mapping[str, Tensor]
Per = Literal["sample", "token", "tensor"]


SHORTEST = 2.0**-12
"""A time below every gap between two full steps, in any unit (`rfc.schedules.fixed.Unit`)."""


class Clock(NamedTuple):
    """Where a step stands in its generation, as 0-d float32 tensors, so that a compiled step never depends on their values.

    Times are steps, or what the schedule counts in (`rfc.schedules.fixed.Unit`).
    """

    k: Tensor
    """Time since the last full step; at a full step it is the gap to the one before."""
    N: Tensor
    """Gap between the two latest full steps; 0 while there is only one."""
    n: Tensor
    """Anchors held: full steps of this generation before this step."""
    weights: Tensor | None = None
    """What the schedule says of this step beside its time (`Schedule.num_weights`), 1-d; None for a schedule that says nothing."""

    @property
    def gap(self) -> Tensor:
        """k at a full step, above 0 also where there was none before."""
        return self.k.clamp(min=SHORTEST)

    @classmethod
    def at(cls, k: float, N: float, n: float, *weights: float, device: torch.device | str = "cpu") -> Clock:
        """Return the clock for plain numbers."""
        packed = torch.tensor([k, N, n, *weights], dtype=torch.float32, device=device)
        return cls(packed[0], packed[1], packed[2], packed[3:] if weights else None)

    def packed(self) -> Tensor:
        """All of it in one 1-d tensor: k, N, n and the weights."""
        times = torch.stack([self.k, self.N, self.n])
        return times if self.weights is None else torch.cat([times, self.weights])


class SlotSpec(NamedTuple):
    """Shape and dtype of one slot, known before the first run."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def spec_of(tensor: Tensor) -> SlotSpec:
    """Shape and dtype of a tensor."""
    return SlotSpec(tuple(tensor.shape), tensor.dtype)


def zeros(slots: Mapping[str, SlotSpec], device: torch.device) -> dict[str, Tensor]:
    """Allocate state: fixed shapes, fixed addresses, usable inside and outside inference mode."""
    with torch.inference_mode(False):
        return {name: torch.zeros(spec.shape, dtype=spec.dtype, device=device) for name, spec in slots.items()}


def inner(a: Float[Tensor, "N *S D"], b: Float[Tensor, "N *S D"], per: Per) -> Float[Tensor, "..."]:
    """<a, b> in float32, reduced per sample, per token or over the whole tensor; reduced axes keep length 1."""
    return inners([(a, b)], per)[0]


def inners(pairs: Sequence[tuple[Tensor, Tensor]], per: Per) -> list[Tensor]:
    """`inner` of each pair; where tokens lie on several ranks, theirs are added in one all-reduce."""
    products = [(a.float() * b.float()).sum(dim=reduced_axes(a.dim(), per), keepdim=True) for a, b in pairs]
    return products if per == "token" else list(summed(*products))


def norm(a: Float[Tensor, "N *S D"], per: Per) -> Float[Tensor, "..."]:
    """||a||_2 in float32 (spec of the axes: `inner`)."""
    return inner(a, a, per).sqrt()


def reduced_axes(rank: int, per: Per) -> list[int]:
    """Axes over which a scalar is formed: all but the first, the last, or all."""
    match per:
        case "sample":
            return list(range(1, rank)) if rank > 1 else [0]
        case "token":
            return [rank - 1]
        case "tensor":
            return list(range(rank))


def scalar_shape(shape: tuple[int, ...], per: Per) -> tuple[int, ...]:
    """Shape of `inner` for tensors of `shape`."""
    reduced = reduced_axes(len(shape), per)
    return tuple(1 if axis in reduced else length for axis, length in enumerate(shape))


def sketch_axis(shape: tuple[int, ...], per: Per) -> int:
    """The axis of a sketch: the longest between samples and channels (the tokens), or the channels where each token is for itself."""
    if per == "token" or len(shape) < 3:
        return len(shape) - 1
    return max(range(1, len(shape) - 1), key=lambda axis: shape[axis])


def sketch(I: Float[Tensor, "N *S D"], every: int, per: Per) -> Float[Tensor, "..."]:
    """Every `every`-th token of I, or every `every`-th channel (`sketch_axis`): enough for inner products and ratios of norms."""
    if every == 1:
        return I
    return I[(slice(None),) * sketch_axis(tuple(I.shape), per) + (slice(None, None, every),)]


def sketch_spec(I: SlotSpec, every: int, per: Per) -> SlotSpec:
    """Shape and dtype of the sketch of a tensor like I."""
    axis = sketch_axis(I.shape, per)
    return I._replace(shape=tuple(-(-length // every) if i == axis else length for i, length in enumerate(I.shape)))


def divided_differences(new: Float[Tensor, "*S"], old: list[Float[Tensor, "*S"]], clock: Clock) -> list[Float[Tensor, "*S"]]:
    """f_0 = new, f_{i+1} = (f_i - f_i,old) / gap: the recursion of TaylorSeer's code, unequal gaps included.

    `old` holds f_0 .. f_m of the full step before. f_i exists from anchor i+1 on and is zero until then (an order
    that is not available yet contributes nothing). arXiv 2503.06923, its released code; RFC writes f_i as Delta^i_N / N^i.
    """
    fresh = [new]
    for i, before in enumerate(old[:-1]):
        difference = ((fresh[i].float() - before.float()) / clock.gap).to(new.dtype)
        fresh.append(torch.where(clock.n > i, difference, torch.zeros_like(difference)))
    return fresh


def shifted_differences(new: Float[Tensor, "*S"], old: list[Float[Tensor, "*S"]], clock: Clock) -> list[Float[Tensor, "*S"]]:
    """[new, new - X, D_1, .., D_{m-1}]: changes between neighbouring full steps, undivided, the latest first.

    `old` holds [X, D_1 .. D_m]; a change that was not seen yet in this generation is zero.
    """
    if len(old) == 1:
        return [new]
    changes = [(new.float() - old[0].float()).to(new.dtype), *old[1:-1]]
    differences = [torch.where(clock.n > i, change, torch.zeros_like(change)) for i, change in enumerate(changes)]
    return [new, *differences]
