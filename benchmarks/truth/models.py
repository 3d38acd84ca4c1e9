"""The trained models whose samples are compared with their converged solutions, each called with pictures, times and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.quality.workloads import CLASSES, WORKLOADS
from benchmarks.training.emoji_model import GUIDANCE, image_ids, pack
from benchmarks.training.emoji_text import TOKENS
from rfc_fx import zoo
from rfc_fx.zoo.flow_digits_model import LabelledFlow, Velocity

Images = Float[Tensor, "N C H W"]

Labelled = Callable[..., Any]
"""Called as a class-conditional DiT is: (x, timestep=, class_labels=), returning an object with `sample`."""

CAPTIONS = (
    "an apple, flat style, on light blue",
    "a cat, noto style, on white",
    "a rocket, twemoji style, on black",
    "a tree, flat style, on orange",
    "a robot, noto style, on pink",
    "a fish, twemoji style, on gray",
    "a house, flat style, on purple",
    "a rose, noto style, on green",
    "a car, twemoji style, on yellow",
    "an owl, flat style, on dark blue",
    "",
)
"""What labels 0 to 9 ask the emoji model for; label 10 is no caption."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained model and how it is called."""

    name: str
    what: str
    load: Callable[[], tuple[Any, Any]]
    """Returns the transformer and the scheduler that it was trained for."""
    noise: Callable[[list[int]], Images]
    guidance: float
    is_flow: bool
    labelled: Callable[[Any], Labelled] = lambda model: model
    """Makes the transformer, or a transformed one, callable with labels."""


class CaptionedFlow:
    """A FLUX on packed latents, called with the numbers of `CAPTIONS` as labels."""

    def __init__(self, model: Labelled, text: Float[Tensor, "11 T D"], pooled: Float[Tensor, "11 D"]) -> None:
        self.model, self.text, self.pooled = model, text, pooled

    def __call__(self, x: Images, *, timestep: Float[Tensor, " N"], class_labels: Int[Tensor, " N"]) -> Velocity:
        """The velocity at latents x of shape (N, 4, 16, 16); `timestep` is 1000 t."""
        n, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        out = self.model(
            hidden_states=pack(x),
            encoder_hidden_states=self.text[class_labels],
            pooled_projections=self.pooled[class_labels],
            timestep=timestep.to(x.dtype) / 1000,
            img_ids=image_ids(rows, columns),
            txt_ids=torch.zeros(TOKENS, 3),
            return_dict=False,
        )[0]
        return Velocity(out.view(n, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape))


def _load_emoji() -> tuple[Any, Any]:
    pipe = zoo.emoji()
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(list(CAPTIONS), None, max_sequence_length=TOKENS)
    pipe.transformer.captions = text, pooled  # read by `_captioned`
    return pipe.transformer, pipe.scheduler


def _captioned(model: Any) -> CaptionedFlow:
    return CaptionedFlow(model, *getattr(model, "model", model).captions)


def _of_workload(name: str) -> Model:
    workload = WORKLOADS[name]
    return Model(name=name, what=workload.what, load=workload.load, noise=workload.noise, guidance=workload.guidance, is_flow=False)


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _of_workload("digits"),
        _of_workload("shapes"),
        Model(
            name="flow",
            what="the shipped flow-matching digits model: FLUX's architecture, 2 double and 4 single blocks of 96, 16 tokens of 2x2 pixels",
            load=zoo.load_flow_digits,
            noise=zoo.digits_noise,
            guidance=1.5,
            is_flow=True,
            labelled=LabelledFlow,
        ),
        Model(
            name="emoji",
            what="the shipped text-to-image model: FLUX's architecture, 4 double and 8 single blocks of 192, 64 tokens, latents compared",
            load=_load_emoji,
            noise=lambda seeds: zoo.starting_noise((4, 16, 16), seeds),
            guidance=GUIDANCE,
            is_flow=True,
            labelled=_captioned,
        ),
    )
}


assert len(CAPTIONS) == CLASSES + 1
