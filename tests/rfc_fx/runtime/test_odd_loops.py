"""Loops that no sampler of a textbook is: jumps back in time, schedulers exchanged or shared, other types from call to call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from families import FAMILIES
from sampler_loops import LISTED, Loop, tiny
from small_digits import small_pipeline as digits
from torch import Tensor

import rfc
import rfc_fx
from rfc_fx.runtime.timetable import Timetable

pytestmark = pytest.mark.usefixtures("captured_once")

FULL, LOG_SNR = rfc.RFC(tau=0.0), rfc.LogSNR(nfc=0.4)
NET = tiny()

JUMPS = [900, 800, 700, 800, 700, 600, 500, 600, 700, 600, 500, 400, 300, 200, 100]
"""RePaint: from time to time noise is added again, and the same levels are denoised once more."""

METHODS = {"all full": FULL, "TaylorSeer": LISTED, "LogSNR": LOG_SNR, "RFC": rfc.RFC(tau=0.3)}


@torch.no_grad()
def walk(call: Callable[..., Any], timesteps: list[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A loop over these timesteps, up and down; each step depends on what the model gave before."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    for timestep in timesteps:
        noise = call(x.to(dtype), timestep=torch.tensor([timestep]), class_labels=torch.tensor([1]), return_dict=False)[0][:, :4]
        x = 0.9 * x - 0.1 * noise.float()
    return x


def model_of(method: rfc.Method) -> Any:
    return rfc_fx.transform(NET, method)


@pytest.mark.parametrize("told", [True, False], ids=["timesteps are told", "nothing is told"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_jumps_back_in_time_are_right_and_leave_nothing(name: str, told: bool) -> None:
    model = model_of(METHODS[name])
    known = {"timesteps": torch.tensor(JUMPS)} if told else {}
    before = Loop(2, 3)
    with model.generation(source=before.scheduler):
        alone = before.run(model)
    with model.generation(**known) as generation:
        jumped = walk(generation, JUMPS, 0)
    if name == "all full":
        assert torch.equal(jumped, walk(NET, JUMPS, 0))
    assert torch.isfinite(jumped).all()
    with model.generation(**known) as generation:
        assert torch.equal(walk(generation, JUMPS, 0), jumped)
    after = Loop(2, 3)
    with model.generation(source=after.scheduler):
        assert torch.equal(after.run(model), alone)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scheduler_that_is_exchanged_in_the_middle_is_computed_where_its_timesteps_are_new(name: str) -> None:
    model = model_of(METHODS[name])
    first, other = DDIMScheduler(), DPMSolverMultistepScheduler()
    first.set_timesteps(10)
    other.set_timesteps(7)
    timesteps = [*first.timesteps.tolist()[:5], *(t for t in other.timesteps.tolist() if t < first.timesteps[4])]
    with model.generation(source=first) as generation:
        exchanged = walk(generation, timesteps, 1)
        phases = generation.stats.phases
    assert torch.isfinite(exchanged).all()
    if name == "all full":
        assert torch.equal(exchanged, walk(NET, timesteps, 1))
    if name == "LogSNR":  # its list is of levels that no longer come
        assert set(phases[5:]) == {"FULL"}
    with model.generation(source=first) as generation:
        assert torch.equal(walk(generation, timesteps, 1), exchanged)


def test_one_scheduler_that_two_pipelines_follow_is_read_by_each_as_it_stands() -> None:
    one, two = digits(), digits()
    two.scheduler = one.scheduler
    expected = {}
    for pipe, label in ((one, 3), (two, 8)):
        own = rfc_fx.accelerate(pipe, LOG_SNR, compile=False)
        expected[label] = [draw(own, label, steps) for steps in (8, 12)]
    for index, steps in ((1, 12), (0, 8)):
        for pipe, label in ((one, 3), (two, 8)):
            assert torch.equal(draw(pipe, label, steps), expected[label][index])
        assert "nobody" not in str(rfc_fx.summary(one))


def draw(pipe: Any, label: int, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(label)
    latents: Tensor = pipe([label], num_inference_steps=steps, generator=generator, output_type="latent").images
    return latents


def test_a_pipeline_s_scheduler_is_exchanged_between_calls() -> None:
    pipe = rfc_fx.accelerate(digits(), LOG_SNR, compile=False)
    first = draw(pipe, 3, 10)
    own = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(own.config)
    other = draw(pipe, 3, 10)
    assert not torch.equal(first, other)
    pipe.scheduler = own
    assert torch.equal(draw(pipe, 3, 10), first)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_calls_of_another_type_between_those_of_a_generation_change_nothing_of_it() -> None:
    model = model_of(LISTED)
    with model.generation() as generation:
        alone = walk(generation, JUMPS[5:], 0)

    def mixed(x: Tensor, **kwargs: Any) -> Any:
        with model.generation() as other:  # integers as int32, an expanded timestep, a contiguous copy of it
            other(x, **{**kwargs, "timestep": kwargs["timestep"].int()})
        return generation(x, **kwargs)

    with model.generation() as generation:
        assert torch.equal(walk(mixed, JUMPS[5:], 0), alone)


def test_gradients_are_refused_where_they_are_asked_for() -> None:
    model = model_of(LISTED)
    x = torch.zeros(1, 4, 8, 8, requires_grad=True)
    with pytest.raises(rfc_fx.errors.SignatureError, match="requires grad"):
        model(x, timestep=torch.tensor([9]), class_labels=torch.tensor([1]))


@pytest.mark.parametrize("steps", [4, 12])
def test_a_first_call_that_reads_like_the_last_timestep_is_the_first(steps: int) -> None:
    """An unshifted flow's timesteps run from 1000 to 1, and a pipeline that divides them by 1000 begins with 1."""
    model, call = FAMILIES["flux"](layers=2)
    scheduler = FlowMatchEulerDiscreteScheduler()
    given = {name: value for name, value in call.items() if name not in ("hidden_states", "timestep", "return_dict")}
    cached = rfc_fx.transform(model, rfc.LogSNR(nfc=0.5), source=scheduler)
    for _ in range(2):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[-1] == 1.0
        x = call["hidden_states"]
        with torch.no_grad(), cached.generation(source=scheduler) as generation:
            for t in scheduler.timesteps:
                x = scheduler.step(cached(hidden_states=x, timestep=t.expand(len(x)) / 1000, return_dict=False, **given)[0], t, x)[0]
        assert (generation.stats.nfc, len(generation.stats.phases)) == (steps // 2, steps)


@pytest.mark.parametrize("begin", [0, 3])
def test_a_list_begins_where_the_scheduler_says_so(begin: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(begin)
    table = Timetable.of(scheduler)
    assert table is not None
    assert table.arrive(scheduler.timesteps[begin].clone() / 1000) == 0
    assert (table.first, table.remaining) == (begin, 10 - begin)
