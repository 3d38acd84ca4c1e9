"""Hermite, Newton and Aligned: their coefficients, what they are exact for, and what they make of too little history."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from math import factorial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import hermite
from tolerances import FORECAST, ROUND
from torch import Tensor

from rfc import Aligned, Clock, Estimator, Hermite, HiCache, Newton, Stored, Taylor
from rfc.state import SlotSpec
from rfc.storage import STORED

Path = Callable[[float], Tensor]

ESTIMATORS: list[Estimator] = [
    *(Hermite(order=m) for m in (1, 2, 4)),
    *(Newton(order=m) for m in (1, 2, 4)),
    Newton(damping=0.5),
    Aligned(),
]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)

seeds = st.integers(0, 10**6)
gaps = st.lists(st.integers(1, 6), min_size=1, max_size=4)
"""Gaps between full steps, unequal in general."""
ahead = st.integers(1, 6)

SHAPE = (2, 6, 5)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


def spec(X: Tensor) -> SlotSpec:
    return SlotSpec(tuple(X.shape), X.dtype)


def remember(estimator: Estimator, I: Path, O: Path, full: list[int]) -> dict[str, Tensor]:
    """The state after full steps at these positions, begun on the remains of an earlier generation at their worst."""
    slots = estimator.slots(spec(I(full[0])), spec(O(full[0])))
    state = {
        name: torch.full(slot.shape, math.nan if slot.dtype.is_floating_point else 127, dtype=slot.dtype) for name, slot in slots.items()
    }
    for n, position in enumerate(full):
        k = position - full[n - 1] if n else 1
        gap = full[n - 1] - full[n - 2] if n > 1 else 0
        state = estimator.refresh(state, I(position), O(position), Clock.at(k, gap, n))
    return state


def forecast(estimator: Estimator, I: Path, O: Path, full: list[int], at: int) -> Tensor:
    """O_hat at a position after these full steps."""
    clock = Clock.at(at - full[-1], full[-1] - full[-2] if len(full) > 1 else 0, len(full))
    return estimator.estimate(remember(estimator, I, O, full), I(at), clock)


def positions(between: list[int]) -> list[int]:
    return [0, *itertools.accumulate(between)]


def error(got: Tensor, wanted: Tensor, beside: Tensor | None = None) -> float:
    """||got - wanted|| / ||beside|| (default: wanted)."""
    return float((got.double() - wanted.double()).norm() / (wanted if beside is None else beside).double().norm())


def polynomial(degree: int, seed: int) -> Path:
    """A tensor that moves along the steps as a polynomial of this degree."""
    terms = [normal(seed + i).double() / 4.0**i for i in range(degree + 1)]
    return lambda t: sum((term * t**i for i, term in enumerate(terms)), torch.zeros(())).float()


# --- what they all keep ----------------------------------------------------------------------------------------------


@every_estimator
@given(dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_slots_announce_shape_and_dtype_of_what_refresh_returns(estimator: Estimator, dtype: torch.dtype) -> None:
    I, O = normal(0).to(dtype), normal(1, 2, 6, 3).to(dtype)
    state = remember(estimator, lambda t: I + t, lambda t: O - t, [0, 2, 3])
    assert {name: spec(value) for name, value in state.items()} == estimator.slots(spec(I), spec(O))
    assert spec(estimator.estimate(state, I, Clock.at(1, 1, 3))) == spec(O)


@every_estimator
@given(seed=seeds)
def test_after_one_full_step_its_output_is_reused(estimator: Estimator, seed: int) -> None:
    I, O = polynomial(2, seed), polynomial(2, seed + 9)
    assert torch.equal(forecast(estimator, I, O, [0], 3), O(0))


@every_estimator
@given(seed=seeds, between=gaps, k=ahead)
def test_unchanged_inputs_and_outputs_give_the_output_again(estimator: Estimator, seed: int, between: list[int], k: int) -> None:
    I, O = normal(seed), normal(seed + 1)
    full = positions(between)
    assert torch.equal(forecast(estimator, lambda t: I, lambda t: O, full, full[-1] + k), O)


@every_estimator
@given(seed=seeds, between=gaps, k=ahead, factor=st.sampled_from([0.5, 4.0, -8.0]))
def test_an_output_scaled_by_a_number_is_forecast_as_that_many_times_the_forecast(
    estimator: Estimator, seed: int, between: list[int], k: int, factor: float
) -> None:
    I, O, full = polynomial(2, seed), polynomial(3, seed + 9), positions(between)
    at = full[-1] + k
    assert torch.equal(forecast(estimator, I, lambda t: factor * O(t), full, at), factor * forecast(estimator, I, O, full, at))


@every_estimator
def test_an_estimator_is_a_value(estimator: Estimator) -> None:
    assert estimator == copy.deepcopy(estimator) == pickle.loads(pickle.dumps(estimator))
    assert hash(estimator) == hash(copy.deepcopy(estimator))


@every_estimator
def test_only_what_is_aligned_to_a_probe_reads_the_input_of_a_skipped_step(estimator: Estimator) -> None:
    assert estimator.needs_input == isinstance(estimator, Aligned)
    c = estimator.coefficients(remember(estimator, normal, normal, [0, 2]), normal(7), Clock.at(1, 2, 2))
    assert len(c) == estimator.orders
    assert all(value.dtype == torch.float32 and value.shape == () for value in c)


@every_estimator
@given(dtype=st.sampled_from(STORED))
def test_differences_can_be_kept_in_smaller_types(estimator: Estimator, dtype: torch.dtype) -> None:
    I, O = polynomial(2, 0), polynomial(2, 9)
    kept = forecast(Stored(estimator=estimator, differences=dtype), I, O, [0, 2, 5], 6)
    assert error(kept, forecast(estimator, I, O, [0, 2, 5], 6)) < 0.2


# --- Hermite ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.floats(0.05, 1.5), st.integers(1, 12))
def test_hermites_coefficients_are_those_of_the_physicists_polynomials(order: int, sigma: float, k: int) -> None:
    c = Hermite(order=order, sigma=sigma).coefficients({}, torch.zeros(1), Clock.at(k, 3, 9))
    H = [hermite.hermval(sigma * k, [0] * i + [1]) for i in range(order + 1)]
    wanted = [sigma**i / factorial(i) * H[i] for i in range(1, order + 1)]
    # H_i is a difference of terms as large as (2 sigma k)^i, in float32
    sizes = [sigma**i / factorial(i) * (2 * sigma * k + 2 * i) ** i for i in range(1, order + 1)]
    for got, value, size in zip(c, wanted, sizes, strict=True):
        assert abs(float(got) - value) <= ROUND * size


def test_with_the_published_sigma_the_first_coefficients_are_half_the_step_and_half_the_square_of_it_less_a_half() -> None:
    assert HiCache().estimator == Hermite(order=2, sigma=0.5)
    for k in (1.0, 2.0, 5.0):  # sigma H_1(k / 2) = k / 2, sigma^2 / 2 H_2(k / 2) = (k^2 - 2) / 8
        assert [float(c) for c in Hermite(order=2).coefficients({}, torch.zeros(1), Clock.at(k, 4, 3))] == [k / 2, (k * k - 2) / 8]


@given(seed=seeds, between=gaps)
def test_hermite_keeps_what_taylor_keeps(seed: int, between: list[int]) -> None:
    O, full = polynomial(3, seed), positions(between)
    hermite, taylor = (remember(kind(order=2), O, O, full) for kind in (Hermite, Taylor))
    assert hermite.keys() == taylor.keys()
    assert all(torch.equal(hermite[name], taylor[name]) for name in taylor)


@given(seed=seeds, between=gaps, k=ahead)
def test_hermite_of_order_one_is_taylor_with_the_step_times_twice_sigma_squared(seed: int, between: list[int], k: int) -> None:
    O, full = polynomial(2, seed), positions(between)
    at = full[-1] + k
    got, wanted = (forecast(kind, O, O, full, at) for kind in (Hermite(order=1, sigma=math.sqrt(0.5)), Taylor(order=1)))
    assert error(got, wanted, beside=O(at)) <= FORECAST


# --- Newton ----------------------------------------------------------------------------------------------------------


@given(order=st.integers(1, 4), seed=seeds, between=st.lists(st.integers(1, 6), min_size=4, max_size=6), k=ahead)
def test_newton_is_exact_for_polynomials_of_its_degree_over_unequal_gaps(order: int, seed: int, between: list[int], k: int) -> None:
    O, full = polynomial(order, seed), positions(between)
    at = full[-1] + k
    largest = max((O(t) for t in (*full[-order - 1 :], at)), key=lambda X: float(X.norm()))
    # each coefficient multiplies the rounding of a divided difference: Lebesgue's constant of these nodes
    assert error(forecast(Newton(order=order), O, O, full, at), O(at), largest) <= FORECAST * lebesgue(full[-order - 1 :], at)


def lebesgue(nodes: list[int], at: int) -> float:
    """How much a rounding of the values at the nodes can change the polynomial through them, at most."""
    return float(sum(abs(np.prod([(at - b) / (a - b) for b in nodes if b != a])) for a in nodes))


@given(seed=seeds, between=gaps, k=ahead)
def test_newton_is_the_polynomial_through_the_latest_full_steps(seed: int, between: list[int], k: int) -> None:
    values = [normal(seed + i).double() for i in range(len(between) + 1)]
    full, order = positions(between), min(2, len(between))
    at, nodes = full[-1] + k, full[-order - 1 :]
    O = dict(zip(full, values, strict=True))
    weights = [float(np.prod([(at - b) / (a - b) for b in nodes if b != a])) for a in nodes]
    wanted = sum((w * O[a] for w, a in zip(weights, nodes, strict=True)), torch.zeros(()))
    got = forecast(Newton(order=2), lambda t: normal(0), lambda t: O[int(t)].float(), full, at)
    assert error(got, wanted, beside=max(weights, key=abs) * values[-1]) <= FORECAST


@given(seed=seeds, between=gaps, k=ahead)
def test_newton_of_order_one_is_taylor_bit_for_bit(seed: int, between: list[int], k: int) -> None:
    O, full = polynomial(3, seed), positions(between)
    at = full[-1] + k
    assert torch.equal(forecast(Newton(order=1), O, O, full, at), forecast(Taylor(order=1), O, O, full, at))


@given(seed=seeds, between=st.lists(st.integers(1, 6), min_size=2, max_size=6), k=ahead)
def test_damped_by_half_newton_is_the_mean_of_the_line_and_the_parabola(seed: int, between: list[int], k: int) -> None:
    O, full = polynomial(3, seed), positions(between)
    at = full[-1] + k
    line, parabola = (forecast(Newton(order=m), O, O, full, at) for m in (1, 2))
    assert error(forecast(Newton(order=2, damping=0.5), O, O, full, at), (line.double() + parabola.double()) / 2, parabola) <= FORECAST
    assert torch.equal(forecast(Newton(order=3, damping=0.0), O, O, full, at), line)


@given(degree=st.integers(0, 3), seed=seeds, k=ahead)
def test_with_fewer_full_steps_than_its_order_newton_takes_the_order_there_is(degree: int, seed: int, k: int) -> None:
    O, full = polynomial(degree, seed), positions([3, 1, 4][:degree])
    assert error(forecast(Newton(order=4), O, O, full, full[-1] + k), O(full[-1] + k)) <= FORECAST * lebesgue(full, full[-1] + k)


def test_taylors_recursion_is_not_exact_where_newton_is() -> None:
    O, full = polynomial(2, 0), [0, 1, 5]
    assert error(forecast(Newton(order=2), O, O, full, 8), O(8)) <= FORECAST * lebesgue(full, 8)
    assert error(forecast(Taylor(order=2), O, O, full, 8), O(8)) > 0.01


# --- Aligned ---------------------------------------------------------------------------------------------------------


def released(I: list[Tensor], O: list[Tensor], now: Tensor, most: float) -> Tensor:
    """DiCache's rule in numpy, from the two latest full steps: r = r_2 + g (r_1 - r_2)."""
    (p2, p1), (r2, r1), p = (X.double().numpy() for X in I), (X.double().numpy() for X in O), now.double().numpy()
    g = np.clip(np.abs(p - p2).mean() / np.abs(p1 - p2).mean(), 1.0, most)
    return torch.from_numpy(r2 + g * (r1 - r2))


@given(seed=seeds, gap=st.integers(1, 5), k=ahead, most=st.sampled_from([1.0, 1.5, 3.0]), far=st.floats(0.0, 4.0))
def test_aligned_is_dicaches_rule(seed: int, gap: int, k: int, most: float, far: float) -> None:
    I, O = [normal(seed + i) for i in range(2)], [normal(seed + 5 + i) for i in range(2)]
    now = I[1] + far * normal(seed + 3)
    at = {0: I[0], gap: I[1], gap + k: now}
    got = forecast(Aligned(most=most), lambda t: at[int(t)], lambda t: O[int(t > 0)], [0, gap], gap + k)
    assert error(got, released(I, O, now, most)) <= FORECAST


@given(seed=seeds, gap=st.integers(2, 8), k=st.integers(1, 4), scale=st.floats(-3, 3))
def test_aligned_is_exact_for_an_output_that_goes_on_with_the_probe_at_half_the_gap_and_less(
    seed: int, gap: int, k: int, scale: float
) -> None:
    I0, O0, dI, dO = (normal(seed + i) for i in range(4))
    k = min(k, gap // 2)
    got = forecast(Aligned(), lambda t: I0 + t * dI, lambda t: O0 + scale * t * dO, [0, gap], gap + k)
    wanted = O0 + scale * (gap + k) * dO
    assert error(got, wanted, beside=wanted.abs() + O0.abs()) <= FORECAST


def factor(I0: Tensor, I1: Tensor, now: Tensor, most: float = 1.5) -> float:
    """g = 1 + c, for full steps at I0 and I1."""
    estimator, at = Aligned(most=most), {0: I0, 4: I1}
    state = remember(estimator, lambda t: at[int(t)], lambda t: normal(int(t)), [0, 4])
    (c,) = estimator.coefficients(state, now, Clock.at(1, 4, 2))
    return 1 + float(c)


@given(seed=seeds, length=st.floats(0.0, 10.0))
def test_the_factor_of_aligned_lies_between_one_and_one_and_a_half(seed: int, length: float) -> None:
    I0, I1, along = (normal(seed + i) for i in range(3))
    assert 1.0 <= factor(I0, I1, I1 + length * along) <= 1.5


def test_the_factor_is_one_where_the_probe_turned_back_and_the_largest_where_it_ran_far() -> None:
    I0, dI = normal(0), normal(1)
    assert factor(I0, I0 + dI, I0 + 0.5 * dI) == factor(I0, I0 + dI, I0 + dI) == 1.0
    assert factor(I0, I0 + dI, I0 + 1.25 * dI) == pytest.approx(1.25, rel=ROUND)
    assert factor(I0, I0 + dI, I0 + 9 * dI) == 1.5
    assert factor(I0, I0 + dI, I0 + 9 * dI, most=4.0) == 4.0


def test_the_factor_is_one_number_for_the_batch() -> None:
    I0, dI = torch.zeros(2, 1, 4), torch.ones(2, 1, 4)
    now = torch.stack([I0[0] + dI[0], I0[1] + 1.5 * dI[1]])  # one sample stayed, the other moved on
    assert factor(I0, I0 + dI, now) == 1.25


# --- what they refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Hermite(order=0), r"^Taylor: order must be an integer of at least 1, got 0$"),
        (lambda: Hermite(sigma=0.0), r"^Hermite: sigma must be a number above 0, got 0\.0$"),
        (lambda: Hermite(sigma=math.inf), r"^Hermite: sigma must be a number above 0, got inf$"),
        (lambda: Hermite(sigma=math.nan), r"^Hermite: sigma must be a number above 0, got nan$"),
        (lambda: Hermite(sigma=True), r"^Hermite: sigma must be a number above 0, got True$"),
        (lambda: Hermite(sigma="1"), r"^Hermite: sigma must be a number above 0, got '1'$"),
        (lambda: Newton(order=0), r"^Newton: order must be an integer from 1 to 4, got 0$"),
        (lambda: Newton(order=5), r"^Newton: order must be an integer from 1 to 4, got 5$"),
        (lambda: Newton(order=1.0), r"^Newton: order must be an integer from 1 to 4, got 1\.0$"),
        (lambda: Newton(damping=1.5), r"^Newton: damping must be from 0 \(a line\) to 1 \(the polynomial\), got 1\.5$"),
        (lambda: Newton(damping=math.nan), r"^Newton: damping must be from 0"),
        (lambda: Newton(damping=True), r"^Newton: damping must be from 0"),
        (lambda: Aligned(most=0.5), r"^Aligned: most must be a number of at least 1, got 0\.5$"),
        (lambda: Aligned(most=math.nan), r"^Aligned: most must be a number of at least 1, got nan$"),
        (lambda: Aligned(most=None), r"^Aligned: most must be a number of at least 1, got None$"),
    ],
)
def test_an_estimator_refuses_what_it_cannot_mean_and_says_what_it_wanted(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
