"""Fitted linear predictions: the sampler's gains, the least squares, and the full steps that are chosen."""

import copy
from itertools import combinations
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import rfc
from rfc.placement.fitted import Recorded
from rfc.schedules.base import NoiseLevels

STEPS = 8

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler(clip_sample=False), {}),
    "ddim-v": (diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"), {}),
    "ddpm": (diffusers.DDPMScheduler(clip_sample=False), {}),
    "euler": (diffusers.EulerDiscreteScheduler(), {}),
    "euler-ancestral": (diffusers.EulerAncestralDiscreteScheduler(), {}),
    "dpm": (diffusers.DPMSolverMultistepScheduler(), {}),
    "unipc": (diffusers.UniPCMultistepScheduler(), {}),
    "deis": (diffusers.DEISMultistepScheduler(), {}),
    "heun": (diffusers.HeunDiscreteScheduler(), {}),
    "flow": (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), {}),
    "flow-dynamic": (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), {"mu": 1.1}),
}


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' DEIS with NumPy 2
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_last_sample_moves_by_the_gains_times_the_outputs(name: str) -> None:
    scheduler, more = SCHEDULERS[name]
    before = copy.deepcopy(dict(scheduler.__dict__))
    gains = rfc.output_gains(scheduler, STEPS, **more)
    assert scheduler.__dict__.keys() == before.keys()  # it is not touched

    def last(outputs: Tensor) -> Tensor:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(STEPS, **more)
        x = torch.ones(1, 1, 2, 2)
        torch.manual_seed(0)
        for timestep, output in zip(own.timesteps, outputs, strict=True):
            x = own.step(output, timestep, x).prev_sample
        return x

    draw = torch.Generator().manual_seed(1)
    outputs = torch.randn(len(gains), 1, 1, 2, 2, generator=draw)
    moved = last(outputs) - last(torch.zeros_like(outputs))
    wanted = (torch.tensor(gains)[:, None, None, None, None] * outputs.double()).sum(0)
    torch.testing.assert_close(moved.double(), wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("scheduler", [3, object(), diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)])
def test_what_has_no_gains_is_refused(scheduler: Any) -> None:
    with pytest.raises(ValueError, match=r"output gains: .* cannot be asked"):
        rfc.output_gains(scheduler, STEPS)


LAMBDAS = tuple(float(x) for x in torch.linspace(-3, 3, STEPS))


def recorded(O: Tensor, gains: list[float] | None = None) -> Recorded:
    flat = O.flatten(1).double()
    return Recorded(flat @ flat.T, gains or [1.0] * len(O), NoiseLevels(LAMBDAS[: len(O)], None))


def path(seed: int = 0, features: int = 40, degree: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    at = torch.linspace(-1, 1, STEPS, dtype=torch.float64)
    return torch.stack([at**i for i in range(degree + 1)], 1) @ torch.randn(degree + 1, features, generator=draw, dtype=torch.float64)


def test_the_weights_are_the_least_squares_of_the_outputs_and_the_correction_that_of_the_errors() -> None:
    O, gains = path().numpy(), [0.5, 1.0, 1.5, 0.7, 1.1, 0.9, 0.4, 1.3]
    steps = (0, 1, 3, 6)
    schedule = rfc.fitted(recorded(torch.from_numpy(O), gains), 4, full_steps=steps).schedule
    assert isinstance(schedule, rfc.Weighted)
    weights = np.array(schedule.weights)
    changes = np.stack([O[3] - O[1], O[1] - O[0]], 1)
    for step in (4, 5):
        np.testing.assert_allclose(weights[step, :2], np.linalg.lstsq(changes, O[step] - O[3], rcond=None)[0], rtol=1e-2, atol=1e-3)
    assert not weights[[4, 5, 7], 2].any()
    g = weights[6, 0]
    ahead = -weights[6, 1:] / g  # g (O - O_hat), O_hat = O[3] + changes @ ahead
    np.testing.assert_allclose(ahead, np.linalg.lstsq(changes, O[6] - O[3], rcond=None)[0], rtol=1e-2, atol=1e-3)
    errors = {step: O[step] - O[3] - changes @ (ahead if step == 6 else weights[step, :2]) for step in (4, 5, 6)}
    left = gains[4] * errors[4] + gains[5] * errors[5]
    np.testing.assert_allclose(g, errors[6] @ left / (errors[6] @ errors[6]) / gains[6], rtol=1e-4)
    assert not weights[[0, 1]].any()  # nothing to correct


@pytest.mark.parametrize("seed", range(3))
def test_the_list_is_at_least_as_good_as_log_snrs_and_near_the_best_of_all(seed: int) -> None:
    record = recorded(path(seed, degree=7))
    found = rfc.fitted(record, 4).schedule
    assert isinstance(found, rfc.Weighted)

    def left(full_steps: tuple[int, ...]) -> float:
        from rfc.placement.fitted import _Fit
        from rfc.placement.nearest import turned

        return _Fit(record, turned(record.levels), 2, 1.0).cost(full_steps)

    every = [left((0, *rest)) for rest in combinations(range(1, STEPS), 3)]
    own = rfc.LogSNR(lambdas=LAMBDAS, nfc=4).schedule.full_steps  # type: ignore[attr-defined]
    assert left(tuple(found.full_steps)) <= left(own)
    assert left(tuple(found.full_steps)) <= sorted(every)[len(every) // 10]


def test_corrections_scale_the_weights_of_full_steps_alone() -> None:
    record = recorded(path())
    schedules = [rfc.fitted(record, 4, corrections=c).schedule for c in (1.0, 0.5)]
    full = list(schedules[0].full_steps)  # type: ignore[attr-defined]
    whole, half = (np.array(schedule.weights) for schedule in schedules)  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.delete(whole, full, 0), np.delete(half, full, 0), rtol=1e-9)
    np.testing.assert_allclose(half[full], whole[full] / 2, rtol=1e-6)
    assert whole[full].any()


@pytest.mark.parametrize("nfc", [0, 9])
def test_a_number_of_full_steps_that_no_generation_has_is_refused(nfc: int) -> None:
    with pytest.raises(ValueError, match="fitted: nfc must be"):
        rfc.fitted(recorded(path()), nfc)


def test_all_steps_and_one_step_are_lists_too() -> None:
    record = recorded(path())
    assert rfc.fitted(record, STEPS).schedule.full_steps == tuple(range(STEPS))  # type: ignore[attr-defined]
    one = rfc.fitted(record, 1).schedule
    assert isinstance(one, rfc.Weighted)
    assert one.full_steps == (0,)
    assert not np.array(one.weights).any()  # reuse
