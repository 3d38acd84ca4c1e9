"""Tensors of the caller: one buffer for every prompt, masks that Python reads, latents that are slices. Each gives what the model gives."""

from typing import Any

import pytest
import torch
from sampler_loops import LISTED, Loop, tiny
from torch import Tensor, nn

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")

NET = tiny()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", [LISTED, rfc.FullCompute()])
def test_prompts_that_share_a_buffer_are_told_apart(mode: Any, method: rfc.Method) -> None:
    """Guidance by separate calls: the label of each branch is written into one tensor before each call."""

    def steps(buffer: Tensor | None) -> list[Tensor]:
        model, outputs = rfc_fx.transform(NET, method), []
        x = Loop(3, 0).x
        with model.generation(timesteps=[900 - 100 * step for step in range(9)]) as generation:
            for step in range(9):
                parts = []
                for number in (3, 5):
                    label = torch.tensor([number]) if buffer is None else buffer.fill_(number)
                    call = {"timestep": torch.tensor([900 - 100 * step]), "class_labels": label}
                    parts.append(generation(x, **call).sample[:, :4].clone())
                outputs += parts
                x = x - 0.1 * (parts[1] + 3 * (parts[0] - parts[1]))
        return outputs

    with mode():
        assert all(map(torch.equal, steps(torch.empty(1, dtype=torch.long)), steps(None)))


class Masked(nn.Module):
    """A model whose Python counts a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.config = NET, NET.config

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, mask: Tensor) -> Any:
        return self.net(hidden_states / int(mask.sum()), timestep=timestep, class_labels=class_labels)


@pytest.mark.parametrize("mode", [pytest.param(torch.no_grad, marks=pytest.mark.slow), torch.inference_mode])
def test_a_mask_that_python_reads_and_the_caller_overwrites_is_another_one(mode: Any) -> None:
    net = Masked().eval()
    model = rfc_fx.transform(net, rfc.FullCompute())
    with mode():
        mask = torch.ones(1, 4, dtype=torch.long)
        call = {"timestep": torch.tensor([500]), "class_labels": torch.tensor([3]), "mask": mask}
        for kept in (4, 2, 4):  # the next request, in the same buffer
            mask.zero_()[:, :kept] = 1
            assert torch.equal(model(Loop(3, 0).x, **call).sample, net(Loop(3, 0).x, **call).sample)
            model.reset()


def test_latents_of_any_strides_are_taken() -> None:
    model = rfc_fx.transform(NET, rfc.FullCompute())
    x = Loop(3, 0).x
    _, channels, height, width = x.shape
    long = torch.randn(2, channels, height, 2 * width, generator=torch.Generator().manual_seed(1))
    call = {"timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([3, 5])}
    for latent in (
        long[..., :width].contiguous(),
        long[..., 1 : width + 1],
        long[:1, ..., :width].expand(2, -1, -1, -1),
        long[..., :width].to(memory_format=torch.channels_last),
    ):
        assert torch.equal(model(latent, **call).sample, NET(latent, **call).sample)
        model.reset()
