"""A tiny DiT and sampler loops that take one step at a time, so that they can be interleaved in any way."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from families import FAMILIES
from torch import Tensor

import rfc

STEPS = 9
LISTED = rfc.TaylorSeer(interval=3, order=1)


def tiny() -> Any:
    """A DiT with random weights."""
    return FAMILIES["dit"]()[0]


class Loop:
    """One generation of one sample, from step `start` of its sampler on."""

    def __init__(self, label: int, seed: int, steps: int = STEPS, start: int = 0) -> None:
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.scheduler.set_timesteps(steps)
        self.x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.label, self.step_index = torch.tensor([label]), start

    @property
    def is_done(self) -> bool:
        return self.step_index == len(self.scheduler.timesteps)

    @torch.no_grad()
    def call(self, model: Any) -> Tensor:
        timestep = self.scheduler.timesteps[self.step_index]
        return model(self.x, timestep=timestep.expand(1), class_labels=self.label, return_dict=False)[0][:, :4]

    def take(self, noise: Tensor) -> None:
        """Let the sampler move the latent."""
        self.x = self.scheduler.step(noise, self.scheduler.timesteps[self.step_index], self.x).prev_sample
        self.step_index += 1

    def step(self, model: Any) -> None:
        self.take(self.call(model))

    def run(self, model: Any, steps: int = STEPS) -> Tensor:
        for _ in range(min(steps, len(self.scheduler.timesteps) - self.step_index)):
            self.step(model)
        return self.x
