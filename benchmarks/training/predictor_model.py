"""The predictor before training: it begins as reuse, and is trained with centred inputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.granularity import block_modules
from rfc.predictor import Predictor


class Centered(torch.nn.Linear):
    """A linear layer of inputs far from zero, trained as one of inputs around zero."""

    center: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("center", torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x - self.center, self.weight, self.bias)

    def folded(self) -> torch.nn.Linear:
        """The same as a plain layer."""
        plain = torch.nn.Linear(self.in_features, self.out_features)
        with torch.no_grad():
            plain.weight.copy_(self.weight)
            plain.bias.copy_(self.bias - self.weight @ self.center)
        return plain


def new_predictor(model: Any, blocks: int) -> Predictor:
    """A predictor that begins as reuse: the projections hand the cache on (as far as SiLU lets them), the gates of the blocks are shut."""
    _, last = block_modules(model)[-1]
    width = model.inner_dim
    predictor = Predictor(last, width, blocks).requires_grad_(True)
    predictor.blocks = torch.nn.ModuleList(copy.deepcopy(block) for _, block in block_modules(model)[-blocks:]).requires_grad_(True)
    predictor.project_out = Centered(width, width)
    for block in predictor.blocks:
        gates: Any = block
        for part in (gates.norm1.linear.weight, gates.norm1.linear.bias):
            part.data.unflatten(0, (6, width))[[2, 5]] = 0.0
        gates.norm1.emb.class_embedder.dropout_prob = 0.0
    return predictor


def open_projections(predictor: Predictor, stream: Float[Tensor, "S N T D"]) -> None:
    """W_in = [~0, 1], W_out = 1, with biases that move the stream to where SiLU is nearly linear: the predictor begins as reuse."""
    width = predictor.channels
    flat = stream.flatten(0, 2)
    mean = flat.mean(0)
    layer = predictor.project_out
    assert isinstance(layer, Centered)
    lift = 4 * flat.std(0) + 6
    with torch.no_grad():
        torch.nn.init.normal_(predictor.project_in.weight, std=0.001)
        predictor.project_in.weight[:, width:].add_(torch.eye(width))
        predictor.project_in.bias.copy_(lift - mean)
        predictor.project_out.weight.copy_(torch.eye(width))
        predictor.project_out.bias.copy_(mean)
        layer.center.copy_(lift)
