"""RidgeChebyshev: against the ridge regression over all outputs, in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.chebyshev import chebvander
from tolerances import FORECAST, HALF
from torch import Tensor

import rfc
from rfc import Clock, RidgeChebyshev
from rfc.state import SlotSpec, State, spec_of, zeros

SHAPE = (2, 3, 4)


def outputs(seed: int, count: int) -> list[Tensor]:
    """Outputs that move at random."""
    draw = torch.Generator().manual_seed(seed)
    now = [torch.randn(SHAPE, generator=draw)]
    for _ in range(count - 1):
        now.append(now[-1] + 0.3 * torch.randn(SHAPE, generator=draw))
    return now


def refreshed(estimator: rfc.Estimator, steps: list[int], O: list[Tensor], state: State | None = None) -> State:
    """The state after full steps at these places, as a generation leaves it."""
    slots = estimator.slots(spec_of(O[0]), spec_of(O[0]))
    state = state or zeros(slots, torch.device("cpu"))
    for n, (step, now) in enumerate(zip(steps, O, strict=True)):
        gap = step - steps[n - 1] if n else 1
        before = steps[n - 1] - steps[n - 2] if n > 1 else 0
        state = estimator.refresh(state, now, now, Clock.at(gap, before, n))
        assert {name: spec_of(tensor) for name, tensor in state.items()} == slots
    return state


def fit(estimator: RidgeChebyshev, steps: list[int], O: list[Tensor], at: int) -> Any:
    """Spectrum's forecast: the ridge regression, mixed with the line through the latest two."""
    H = np.stack([now.double().numpy().ravel() for now in O])
    X, x = (chebvander(2 * np.asarray(t) / estimator.span - 1, estimator.degree) for t in (steps, [at]))
    cheb = x @ np.linalg.solve(X.T @ X + estimator.ridge * np.eye(estimator.degree + 1), X.T @ H)
    line = H[-1] + ((at - steps[-1]) / (steps[-1] - steps[-2]) * (H[-1] - H[-2]) if len(O) > 1 else 0)
    return (estimator.weight * cheb[0] + (1 - estimator.weight) * line).reshape(SHAPE)


@given(
    seed=st.integers(0, 10**6),
    degree=st.integers(0, 6),
    ridge=st.floats(0.05, 1.0),
    weight=st.sampled_from([1.0, 0.5, 0.0]),
    gaps=st.lists(st.integers(1, 6), max_size=9),
    k=st.integers(1, 6),
)
def test_the_forecast_is_the_ridge_regression_over_all_full_steps(
    seed: int, degree: int, ridge: float, weight: float, gaps: list[int], k: int
) -> None:
    steps = [0, *np.cumsum(gaps).tolist()]
    O = outputs(seed, len(steps))
    estimator = RidgeChebyshev(degree=degree, ridge=ridge, weight=weight, span=60.0)
    stale = {name: torch.full_like(X, float("nan")) for name, X in refreshed(estimator, steps, O).items()}
    for state in (refreshed(estimator, steps, O), refreshed(estimator, steps, O, stale)):  # nothing of a generation before is left
        got = estimator.estimate(state, O[0], Clock.at(k, gaps[-1] if gaps else 0, len(steps)))
        wanted = fit(estimator, steps, O, steps[-1] + k)
        assert np.abs(got.double().numpy() - wanted).max() <= 8 * FORECAST * np.abs(wanted).max()


def test_time_in_generations_gives_what_time_in_steps_gives() -> None:
    steps, O = [0, 1, 4, 9], outputs(0, 4)
    one, fifty = RidgeChebyshev(), RidgeChebyshev(span=50.0)
    state = zeros(one.slots(spec_of(O[0]), spec_of(O[0])), torch.device("cpu"))
    for n, (gap, now) in enumerate(zip((0, 1, 3, 5), O, strict=True)):
        state = one.refresh(state, now, now, Clock.at(gap / 50, 0, n))
    got = one.estimate(state, O[0], Clock.at(3 / 50, 5 / 50, 4))
    torch.testing.assert_close(got, fifty.estimate(refreshed(fifty, steps, O), O[0], Clock.at(3, 5, 4)))


def test_the_state_is_one_tensor_for_each_polynomial_however_many_full_steps_there_are() -> None:
    O = SlotSpec((2, 3, 4), torch.bfloat16)
    whole = [name for name, spec in RidgeChebyshev(degree=4).slots(O, O).items() if spec == O]
    assert whole == ["O", "dO1", "dO2", "dO3", "dO4", "dO5"]
    mixed = [name for name, spec in RidgeChebyshev(degree=4, weight=0.5).slots(O, O).items() if spec == O]
    assert mixed == [*whole, "dO6"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_forecast_keeps_its_type_and_is_near(dtype: torch.dtype) -> None:
    steps = [0, 1, 2, 3, 4, 6, 8, 11]
    O = [now.to(dtype) for now in outputs(1, len(steps))]
    estimator = RidgeChebyshev(span=50.0, weight=0.5)
    got = estimator.estimate(refreshed(estimator, steps, O), O[0], Clock.at(2, 3, 8))
    assert got.dtype == dtype
    wanted = fit(estimator, steps, O, 13)
    assert np.abs(got.double().numpy() - wanted).max() <= 8 * HALF[dtype] * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"degree": 9}, r"^RidgeChebyshev: degree must be an integer from 0 to 8, got 9$"),
        ({"degree": True}, r"degree must be an integer from 0 to 8, got True$"),
        ({"ridge": 0}, r"^RidgeChebyshev: ridge must be a number from 0\.0001 to 10000, got 0$"),
        ({"weight": 1.5}, r"^RidgeChebyshev: weight must be a number from 0 to 1, got 1\.5$"),
        ({"span": float("nan")}, r"^RidgeChebyshev: span must be a number from .*, got nan$"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RidgeChebyshev(**settings)
