"""Full steps even in log-SNR, with polynomial forecasts: solvers of a few steps on the sampler's own grid."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

import rfc
from rfc.bookkeeping import clock_tensors
from rfc.placement.even import LIMITS, ORDERS, even_lists, even_steps
from rfc.placement.noise_levels import noise_levels
from rfc.state import spec_of

LAMBDAS = (-math.inf, *(-3.0 + 0.25 * step for step in range(25)))


def test_full_steps_lie_nearest_to_even_levels() -> None:
    assert even_steps(LAMBDAS, 5, 2.0) == (0, 9, 13, 17, 21)  # -1, 0, 1 and 2; noise alone comes first
    assert even_steps(LAMBDAS, 1, 2.0) == (0,)
    assert even_steps(LAMBDAS, 26, 2.0) == tuple(range(26))


@pytest.mark.parametrize("nfc", [2, 6, 25, 26])
def test_there_are_as_many_full_steps_as_asked_for(nfc: int) -> None:
    for limit in (0.1, 2.5, 9.0):
        steps = even_steps(LAMBDAS, nfc, limit)
        assert len(set(steps)) == len(steps) == nfc
        assert steps[0] == 0
        assert list(steps) == sorted(steps)


def run(method: rfc.Method, sampler: FlowMatchEulerDiscreteScheduler, noise: Tensor) -> Tensor:
    """Euler's steps with the model v(x) = x, computed at full steps alone."""
    x, record, state = (
        noise,
        rfc.Record(),
        {name: torch.zeros(s.shape) for name, s in method.estimator.slots(spec_of(noise), spec_of(noise)).items()},
    )
    for t in sampler.timesteps:
        clock = clock_tensors(record.clock(method.schedule), torch.device("cpu"))
        if record.decide(method.schedule, method.schedule.numbers(), None, None) == "FULL":
            v, state = x + method.estimator.correction(state, x, x, clock), method.estimator.refresh(state, x, x, clock)
        else:
            v = method.estimator.estimate(state, x, clock)
        x = sampler.step(v, t, x, return_dict=False)[0]
    return x


def test_order_0_is_eulers_solver_at_the_full_steps() -> None:
    sampler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sampler.set_timesteps(20)
    noise = torch.randn(1, 4)
    first = next(iter(even_lists(noise_levels(sampler), 5, "prediction")))
    sigmas = [float(sampler.sigmas[step]) for step in first.schedule.full_steps] + [0.0]  # type: ignore[attr-defined]
    expected = noise
    for now, after in pairwise(sigmas):
        expected = expected + (after - now) * expected
    torch.testing.assert_close(run(first, sampler, noise), expected)


def test_every_limit_and_order_is_a_list_that_refining_takes() -> None:
    sampler = FlowMatchEulerDiscreteScheduler()
    sampler.set_timesteps(20)
    lists = list(even_lists(noise_levels(sampler), 6, "stack"))
    assert len(lists) == len(LIMITS) * len(ORDERS)
    for method in lists:
        assert isinstance(method.schedule, rfc.Weighted)
        assert method.schedule.nfc == 6
        assert method.granularity == "stack"


def test_a_sampler_that_calls_twice_at_a_level_has_lists_too() -> None:
    sampler = FlowMatchHeunDiscreteScheduler()
    sampler.set_timesteps(6)
    levels = noise_levels(sampler)
    for nfc in (4, len(levels.lambdas)):
        lists = list(even_lists(levels, nfc, "prediction"))
        assert lists
        assert all(method.schedule.nfc == nfc for method in lists)
    assert len(lists) == 1  # every call is full: two at each level, which no polynomial goes through
