"""The converged solution, and the solvers of diffusers at given levels, where the exact solution is known: Gaussian data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.quality.similarity import relative_l2
from benchmarks.truth.converged import STEPS, Predict, converged, guided, integrals, prediction_of
from benchmarks.truth.levels import SPACINGS, Levels
from benchmarks.truth.solvers import SOLVERS, at_times, draw, spaced
from rfc_fx.zoo import digits_noise, load_flow_digits
from rfc_fx.zoo.flow_digits_model import LabelledFlow

DEVIATION = torch.tensor([0.05, 0.2, 0.5, 1.0])
"""Of the data, by pixel."""

SCHEDULERS = {"epsilon": DDIMScheduler(clip_sample=False), "flow": FlowMatchEulerDiscreteScheduler(shift=3.0)}

NOISE = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def shares(levels: Levels, time: float) -> tuple[float, float]:
    """Of the picture and of noise, alpha and sigma."""
    ratio = math.exp(float(levels.lambdas(np.array([time]))[0]))
    sigma = 1 / (1 + ratio) if levels.is_flow else 1 / math.sqrt(1 + ratio**2)
    return ratio * sigma, sigma


def gaussian(prediction: str) -> tuple[Levels, Predict, Tensor]:
    """Levels, the perfect model's output, and the exact end of the differential equation that begins with NOISE."""
    levels = Levels.of(SCHEDULERS[prediction])
    variance = DEVIATION.square().double().reshape(1, 1, 2, 2)

    def total(time: float) -> Tensor:
        alpha, sigma = shares(levels, time)
        return alpha**2 * variance + sigma**2

    def predict(x: Tensor, time: float) -> Tensor:
        alpha, sigma = shares(levels, time)
        picture = alpha * variance / total(time) * x.double()
        return (((x - alpha * picture) if prediction == "epsilon" else (x - picture)) / sigma).to(x.dtype)

    end = NOISE.double() * (total(levels.last) / total(levels.first)).sqrt()
    return levels, predict, shares(levels, levels.last)[0] * variance / total(levels.last) * end


def error(samples: Tensor, exact: Tensor) -> float:
    return float(relative_l2(samples, exact).max())


@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(-3, 3), st.floats(0.01, 1))
def test_the_integral_of_a_cubic_through_four_levels_is_exact(coefficients: list[float], low: float, step: float) -> None:
    cubic = np.polynomial.Polynomial(coefficients)
    nodes, high = low - step * np.arange(4), low + step
    antiderivative = cubic - cubic.deriv() + cubic.deriv(2) - cubic.deriv(3)  # of exp(x) cubic(x), divided by exp(x)
    exact = math.exp(high) * antiderivative(high) - math.exp(low) * antiderivative(low)
    assert integrals(nodes, low, high) @ cubic(nodes) == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_the_converged_solution_is_the_exact_one(prediction: str) -> None:
    levels, predict, exact = gaussian(prediction)
    errors = {steps: error(converged(predict, levels, prediction, NOISE.double(), steps), exact) for steps in (30, 60, 120)}
    assert errors[120] < 2e-4
    assert errors[60] < errors[30] / 6
    assert errors[120] < errors[60] / 6


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # in DEIS
@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_of_a_solver_falls_with_its_steps(name: str, prediction: str) -> None:
    _, predict, exact = gaussian(prediction)
    solver, spacing = SOLVERS[name], "uniform"
    few, more = (error(draw(predict, spaced(solver, SCHEDULERS[prediction], spacing, solver.steps(n)), NOISE, n), exact) for n in (8, 40))
    assert more < few / 1.5


@pytest.mark.parametrize("name", ["DPM-Solver++ 2M", "UniPC"])
def test_at_its_own_times_a_solver_draws_its_own_samples(name: str) -> None:
    _, predict, _ = gaussian("epsilon")
    solver = SOLVERS[name]
    own = solver.make(SCHEDULERS["epsilon"], False)
    expected = draw(predict, own, NOISE, 12)
    samples = draw(predict, at_times(solver, SCHEDULERS["epsilon"], own.timesteps.numpy()), NOISE, 12)
    assert error(samples, expected.double()) < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [6, 14, 50])
def test_levels_fall_from_all_noise_to_the_last(n: int, spacing: str, prediction: str) -> None:
    levels = Levels.of(SCHEDULERS[prediction])
    times = SPACINGS[spacing](levels, n)
    assert len(times) == n
    assert times[0] == pytest.approx(levels.first)
    assert (np.diff(times) < 0).all()
    assert times[-1] >= levels.last - 1e-9
    inner = times[1:]
    assert levels.times(levels.lambdas(inner)) == pytest.approx(inner)


@pytest.mark.slow
def test_twice_the_steps_change_the_converged_solution_of_a_trained_model_little() -> None:
    """By far less than the samples of 14 steps are away from it; the network reads sin(t) of 1000 times, and is no smoother."""
    model, scheduler = load_flow_digits()
    predict = guided(LabelledFlow(model), torch.tensor([3, 8]), 1.5)
    levels, noise = Levels.of(scheduler), digits_noise([0, 1])
    once, twice = (converged(predict, levels, prediction_of(scheduler), noise, steps) for steps in (STEPS, 2 * STEPS))
    assert error(once, twice.double()) < 2e-3
