"""Loops that nobody opens a generation for: a latent that no sampler makes of what was before begins with empty state."""

import warnings
from contextlib import nullcontext
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from sampler_loops import LISTED, Loop, tiny
from torch import Tensor

import rfc
import rfc_fx
from rfc_fx.runtime.succession import Succession

pytestmark = pytest.mark.usefixtures("captured_once")

NET = tiny()
STEPS = 9
RFC = rfc.RFC(tau=0.15)


def quietly(loop: Loop, model: Any) -> Tensor:
    """What a loop gives, whatever is said of its number of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loop.run(model)


@pytest.mark.parametrize("start", [4, 5, 6])
@pytest.mark.parametrize("method", [LISTED, RFC, rfc.LogSNR(diffusers.DDIMScheduler(), STEPS, 4)], ids=["listed", "rfc", "log-snr"])
def test_what_was_abandoned_leaves_nothing_behind(method: rfc.Method, start: int) -> None:
    """The next loop begins at the same or a lower noise, with the same prompt; the one after that too."""
    model, expected = rfc_fx.transform(NET, method), quietly(Loop(3, 1, start=start), rfc_fx.transform(NET, method))
    for seed in (0, 2):
        abandoned = Loop(3, seed)
        abandoned.scheduler.timesteps = abandoned.scheduler.timesteps[:5]
        quietly(abandoned, model)
        assert torch.equal(quietly(Loop(3, 1, start=start), model), expected)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_the_noise_of_an_abandoned_loop_once_more_is_no_next_step_of_it(steps: int, scale: float) -> None:
    """A request that is cancelled, and the same one from a lower noise on: no output has a part in its latent, so it begins anew."""
    model, again = rfc_fx.transform(NET, LISTED), Loop(3, 0, start=4)
    again.x = again.x * scale
    Loop(3, 0).run(model, steps)
    assert torch.equal(again.call(model), again.call(NET))


def test_an_abandoned_loop_is_said_before_the_first_result_after_it() -> None:
    model = rfc_fx.transform(NET, LISTED)
    Loop(3, 0).run(model, 5)
    with pytest.warns(rfc_fx.UncertainCallWarning, match=r"^DiTTransformer2DModel: the latent of a call is not what a sampler makes"):
        Loop(3, 1, start=6).step(model)


@pytest.mark.parametrize("steps", [STEPS, 5])
def test_the_same_picture_drawn_again_is_the_same_and_nothing_is_said(steps: int) -> None:
    """Each of its latents is one of the loop before, which may have been abandoned."""
    model = rfc_fx.transform(NET, LISTED)
    expected = Loop(3, 0).run(rfc_fx.transform(NET, LISTED))
    abandoned = Loop(3, 0)
    abandoned.scheduler.timesteps = abandoned.scheduler.timesteps[:steps]
    abandoned.run(model)
    for _ in range(2):
        assert torch.equal(Loop(3, 0).run(model), expected)


class Interval(Loop):
    """Guidance in one batch, at some steps in the middle; without it the batch has one sample."""

    def call(self, model: Any) -> Tensor:
        if not 4 <= self.step_index < 10:
            return super().call(model)
        timestep, labels = self.scheduler.timesteps[self.step_index].expand(2), torch.cat([0 * self.label, self.label])
        uncond, cond = model(torch.cat([self.x, self.x]), timestep=timestep, class_labels=labels, return_dict=False)[0][:, :4].chunk(2)
        return uncond + 2 * (cond - uncond)


@pytest.mark.parametrize("is_opened", [False, True])
def test_guidance_within_an_interval_of_an_unknown_sampler_is_said_and_of_a_known_one_goes_on_with_a_full_step(is_opened: bool) -> None:
    model, loop = rfc_fx.transform(NET, rfc.FORA(interval=3)), Interval(3, 0, 16)
    said = pytest.warns(rfc_fx.LateCallWarning, match="say the sampler, which has such a step computed in full")
    if not is_opened:
        Loop(3, 1, 16).run(model, 16)  # another run before tells nothing of this one's steps
    with said, model.generation() if is_opened else nullcontext():
        loop.run(model, 16)
    model, loop = rfc_fx.transform(NET, rfc.FORA(interval=3)), Interval(3, 0, 16)
    with model.generation(source=loop.scheduler) as generation:
        loop.run(model, 10)
        assert torch.equal(loop.call(model), loop.call(NET))
    assert generation.stats.phases[-1] == "FULL"


def test_a_request_that_is_tried_again_with_the_same_latent_is_said() -> None:
    model = rfc_fx.transform(NET, LISTED)
    Loop(3, 0).step(model)
    with pytest.warns(rfc_fx.RepeatedCallWarning, match=r"another step of the generation; .*open model.generation\(\)"):
        Loop(3, 0).step(model)


SAMPLERS: dict[str, Any] = {
    "ddim": diffusers.DDIMScheduler(clip_sample=False),
    "euler": diffusers.EulerDiscreteScheduler(),
    "dpm++ 2m": diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "dpm++ 3m": diffusers.DPMSolverMultistepScheduler(solver_order=3),
    "unipc": diffusers.UniPCMultistepScheduler(),
    "heun": diffusers.HeunDiscreteScheduler(),
    "lms": diffusers.LMSDiscreteScheduler(),
    "flow euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow heun": diffusers.FlowMatchHeunDiscreteScheduler(),
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler(),
}


@torch.no_grad()
def guided(model: Any, name: str, in_one_batch: bool) -> Tensor:
    """Classifier-free guidance in one batch or by two calls, for two samples."""
    torch.manual_seed(0)
    scheduler = SAMPLERS[name]
    scheduler.set_timesteps(STEPS)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * getattr(scheduler, "init_noise_sigma", 1.0)
    labels = torch.tensor([3, 4, 5, 5])
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        calls = [(torch.cat([scaled, scaled]), labels)] if in_one_batch else [(scaled, labels[:2]), (scaled, labels[2:])]
        outputs = [model(at, timestep=t.expand(len(at)), class_labels=of, return_dict=False)[0][:, :4] for at, of in calls]
        cond, uncond = torch.cat(outputs).chunk(2)
        x = scheduler.step(uncond + 4 * (cond - uncond), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("in_one_batch", [True, False], ids=["one batch", "two calls"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if "ancestral" not in name])
def test_the_steps_of_a_sampler_follow_from_one_another(name: str, in_one_batch: bool) -> None:
    model = rfc_fx.transform(NET, rfc.FORA(interval=3))
    guided(model, name, in_one_batch)  # warnings are errors
    first = {lane: record.phases for lane, record in model.contexts.items()}
    assert len(first) == 1 + (not in_one_batch)
    assert all(phases.count("ESTIMATE") >= len(phases) // 2 for phases in first.values())


def test_steps_that_noise_is_added_between_are_computed_in_full_and_that_is_said() -> None:
    """As long as the noise is no small part of the latent."""
    model, draw, loop = rfc_fx.transform(NET, rfc.FORA(interval=3)), torch.Generator().manual_seed(0), Loop(3, 0)

    def run() -> bool:
        are_full = []
        while not loop.is_done:
            are_full.append(torch.equal(loop.call(model), loop.call(NET)))
            loop.step(NET)
            loop.x = loop.x + 0.5 * loop.x.std() * torch.randn(loop.x.shape, generator=draw)
        return all(are_full)

    with pytest.warns(rfc_fx.UncertainCallWarning, match=r"a sampler that adds noise \(ancestral, SDE\).*source=pipe"):
        assert run()


def test_what_stays_beside_the_latent_says_nothing() -> None:
    """An image to edit, in channels of its own behind those that move: it is no sign that a latent follows."""
    draw = torch.Generator().manual_seed(0)
    image, x, other, output = (torch.randn(1, 4, 8, 8, generator=draw) for _ in range(4))
    succession = Succession()
    run = succession.find(torch.cat([x, image], 1), 9.0, None)
    succession.note(output)
    assert succession.find(torch.cat([other, image], 1), 8.0, run) is not run
    assert succession.find(torch.cat([x - 0.3 * output, image], 1), 8.0, run) is run


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_none_follow_from_nothing(wrong: float) -> None:
    succession, x = Succession(), torch.randn(1, 4, 8, 8)
    run = succession.find(x, 9.0, None)
    succession.note(x * 2)
    bad = x.clone()
    bad[0, 0, 0, 0] = wrong
    assert succession.find(bad, 8.0, run) is not run
