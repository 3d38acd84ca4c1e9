"""The shipped flow-matching digits model: how a stock FLUX is called for labelled pictures in pixel space, and drawn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CLASSES = 11
"""Ten digits and, in the last place, no class."""


class Velocity(NamedTuple):
    """What a call returns, as diffusers' models name it."""

    sample: Float[Tensor, "N 1 H W"]


class LabelledFlow:
    """A `FluxTransformer2DModel` of 2x2 pixels a token, called as a class-conditional model of pictures.

    The label is its only text token and its pooled text, one-hot. `model` may also be a transformed one (`rfc_fx.transform`).
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model

    def __call__(self, x: Float[Tensor, "N 1 H W"], *, timestep: Float[Tensor, " N"], class_labels: Int[Tensor, " N"]) -> Velocity:
        """The velocity d x_t / dt of x_t = (1 - t) picture + t noise; `timestep` is 1000 t, as the scheduler has it."""
        _, _, rows, columns = x.shape
        label = F.one_hot(class_labels, CLASSES).to(x.dtype)
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(rows // 2).float(), torch.arange(columns // 2).float()).to(x.device)
        out = self.model(
            hidden_states=F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
            encoder_hidden_states=label[:, None],
            pooled_projections=label,
            timestep=timestep.to(x.dtype) / 1000,
            img_ids=places,
            txt_ids=torch.zeros(1, 3, device=x.device),
            return_dict=False,
        )[0]
        return Velocity(F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (rows // 2, columns // 2)), 2))
