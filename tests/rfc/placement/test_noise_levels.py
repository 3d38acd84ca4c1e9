"""Noise levels: half the log-SNR at each call, read from any scheduler that has them."""

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from rfc.placement.noise_levels import noise_levels

LEVEL = 1e-4
"""Of lambda: schedulers keep their levels in float32."""


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_where_alpha_is_known_it_is_that_of_the_timesteps(schedule: str) -> None:
    scheduler = DDIMScheduler(beta_schedule=schedule)
    found = noise_levels(scheduler, 10)
    scheduler.set_timesteps(10)
    squared = scheduler.alphas_cumprod[scheduler.timesteps].double()
    assert found.lambdas == pytest.approx(((squared / (1 - squared)).log() / 2).tolist())
    assert found.end is None
    assert list(found.lambdas) == sorted(found.lambdas)


def test_a_scheduler_that_ends_with_noise_says_how_much() -> None:
    found = noise_levels(DDIMScheduler(set_alpha_to_one=False), 10)
    squared = float(DDIMScheduler().alphas_cumprod[0])
    assert found.end == pytest.approx(math.log(squared / (1 - squared)) / 2)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_samplers_of_the_same_betas_agree_at_the_same_timestep(kind: Any) -> None:
    scheduler = kind(timestep_spacing="leading", steps_offset=0)
    scheduler.set_timesteps(10)
    found = noise_levels(scheduler)
    squared = DDIMScheduler().alphas_cumprod.double()
    wanted = (squared / (1 - squared)).log() / 2
    assert len(found.lambdas) == len(scheduler.timesteps)
    for timestep, got in zip(scheduler.timesteps.tolist(), found.lambdas, strict=True):
        if timestep == int(timestep):
            assert got == pytest.approx(float(wanted[int(timestep)]), abs=0.02)  # sigmas may be those of the steps between
    assert list(found.lambdas) == sorted(found.lambdas)


def test_the_sigma_of_flow_matching_is_the_share_of_noise() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    found = noise_levels(scheduler, 8)
    scheduler.set_timesteps(8)
    sigmas = scheduler.sigmas.tolist()
    assert found.lambdas[0] == -math.inf
    assert found.lambdas[1:] == pytest.approx([math.log((1 - sigma) / sigma) for sigma in sigmas[1:-1]], abs=LEVEL)
    assert found.end is None
    other = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    lambdas = noise_levels(other, 8).lambdas
    other.set_timesteps(8)
    assert lambdas == pytest.approx([math.log((1 - sigma) / sigma) for sigma in other.sigmas[:-1].double().tolist()], abs=LEVEL)


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_a_sampler_of_second_order_has_a_level_for_every_call(kind: Any) -> None:
    found = noise_levels(kind(), 5)
    assert len(found.lambdas) == 9
    assert [a == b for a, b in zip(found.lambdas[1::2], found.lambdas[2::2], strict=True)] == [True] * 4


def test_the_scheduler_stays_as_it_was_and_may_be_taken_as_it_stands() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()
    assert len(noise_levels(scheduler, 5).lambdas) == 5
    assert torch.equal(scheduler.timesteps, before)
    assert noise_levels(scheduler) == noise_levels(DDIMScheduler(), 7)


def test_what_a_pipeline_hands_to_the_scheduler_may_be_handed_over() -> None:
    shifted = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match=r"Discrete.*\.set_timesteps\(num_inference_steps\) failed: .*mu.*; pass what the"):
        noise_levels(shifted, 8)
    low, high = (noise_levels(shifted, 8, mu=mu).lambdas[4] for mu in (0.5, 1.15))
    assert high < low  # the larger the picture, the longer it stays noise
    assert noise_levels(shifted, sigmas=[1.0, 0.5], mu=0.0).lambdas == pytest.approx((-math.inf, 0.0), abs=LEVEL)


class Strange:
    """A scheduler with nothing but timesteps."""

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps)


@pytest.mark.parametrize(
    ("scheduler", "steps", "said"),
    [
        (None, 8, "expected a scheduler such as pipe.scheduler, got NoneType"),
        (DDIMScheduler(), None, "DDIMScheduler was not told how many steps there are; pass num_steps, or call set_timesteps first"),
        (DDIMScheduler(), 0, "noise levels: num_steps must be an integer of at least 1, got 0"),
        (DDIMScheduler(), 2.5, "noise levels: num_steps must be an integer of at least 1, got 2.5"),
        (DDIMScheduler(), 2000, r"DDIMScheduler\.set_timesteps\(num_inference_steps\) failed"),
        (Strange(), 4, r"Strange has neither alphas_cumprod nor one of sigmas for each of its 4 timesteps; say them yourself: rfc\.LogSNR"),
    ],
)
def test_a_scheduler_without_levels_is_refused(scheduler: Any, steps: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        noise_levels(scheduler, steps)
