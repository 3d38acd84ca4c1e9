"""The laws of the estimators: slots, refresh, coefficients."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FORECAST, GRAM, HALF, ROUND, ridge_bias
from torch import Tensor

from rfc import RFE, Clock, Estimator, Projective, Reuse, Taylor, combine
from rfc.estimators.relational import positive_definite_inverse
from rfc.state import SlotSpec, divided_differences, inner, norm, scalar_shape, shifted_differences

Path = Callable[[float], Tensor]

ESTIMATORS: list[Estimator] = [
    Reuse(),
    Taylor(order=1),
    Taylor(order=2),
    Taylor(order=4),
    *(RFE(order=order, norm=norm) for order in (1, 2) for norm in ("sample", "token", "tensor")),
    *(Projective(order=order, per=per) for order in (1, 2, 3, 4) for per in ("sample", "token")),
]
RELATIONAL = [estimator for estimator in ESTIMATORS if estimator.needs_input]

N, T, D, E = 2, 6, 8, 5

seeds = st.integers(0, 10**6)
gaps = st.lists(st.integers(1, 6), min_size=1, max_size=4)
"""Gaps between full steps, unequal in general."""
ahead = st.integers(1, 6)


def label(estimator: Any) -> str:
    return repr(estimator)


every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
every_relational = pytest.mark.parametrize("estimator", RELATIONAL, ids=label)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spec(tensor: Tensor) -> SlotSpec:
    return SlotSpec(tuple(tensor.shape), tensor.dtype)


def poison(estimator: Estimator, I: Tensor, O: Tensor) -> dict[str, Tensor]:
    """What an earlier generation may have left behind, at its worst."""
    return {name: torch.full(slot.shape, math.nan, dtype=slot.dtype) for name, slot in estimator.slots(spec(I), spec(O)).items()}


def remember(estimator: Estimator, I: Path, O: Path, full: list[int]) -> dict[str, Tensor]:
    """The state after full steps at the positions `full`, begun on the remains of an earlier generation."""
    state = poison(estimator, I(full[0]), O(full[0]))
    for n, position in enumerate(full):
        k = position - full[n - 1] if n else 1
        gap = full[n - 1] - full[n - 2] if n > 1 else 0
        state = estimator.refresh(state, I(position), O(position), Clock.at(k, gap, n))
    return state


def clock_of(full: list[int], at: int) -> Clock:
    return Clock.at(at - full[-1], full[-1] - full[-2] if len(full) > 1 else 0, len(full))


def forecast(estimator: Estimator, I: Path, O: Path, full: list[int], at: int) -> Tensor:
    """O_hat at position `at` after full steps at `full`."""
    return estimator.estimate(remember(estimator, I, O, full), I(at), clock_of(full, at))


def positions(between: list[int]) -> list[int]:
    return [sum(between[:i]) for i in range(len(between) + 1)]


def assert_close(got: Tensor, wanted: Tensor, tolerance: float, beside: Tensor | None = None) -> None:
    """||got - wanted|| <= tolerance ||beside|| (default: wanted)."""
    got, wanted = got.double(), wanted.double()
    size = (wanted if beside is None else beside.double()).norm()
    assert torch.isfinite(got).all()
    error = (got - wanted).norm()
    assert error <= tolerance * size, f"relative error {float(error / size):.2e}, tolerance {tolerance:.2e}"


def affine(seed: int, channels: int = D, out: int = E) -> Callable[[Tensor], Tensor]:
    """A module that is affine on tokens, with a matrix of its own for each sample."""
    A, b = normal(seed, N, channels, out), normal(seed + 1, N, 1, out)
    return lambda I: I @ A + b


# --- slots -----------------------------------------------------------------------------------------------------------


dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@every_estimator
@given(axes=st.sampled_from([(6,), (3, 4), (2, 3, 2)]), dtype=dtypes)
def test_slots_announce_shape_and_dtype_of_what_refresh_returns(estimator: Estimator, axes: tuple[int, ...], dtype: torch.dtype) -> None:
    I, O = torch.randn(N, *axes, D).to(dtype), torch.randn(N, *axes, E).to(dtype)
    announced = estimator.slots(spec(I), spec(O))
    state = poison(estimator, I, O)
    for n in range(3):
        state = estimator.refresh(state, I + n, O - n, Clock.at(2, 2, n))
        assert {name: spec(value) for name, value in state.items()} == announced
    estimate = estimator.estimate(state, I, Clock.at(1, 2, 3))
    assert spec(estimate) == spec(O)


@every_estimator
def test_refresh_returns_a_new_state_and_leaves_the_old_one_as_it_was(estimator: Estimator) -> None:
    I, O = torch.randn(N, T, D), torch.randn(N, T, E)
    old = {name: torch.randn(slot.shape) for name, slot in estimator.slots(spec(I), spec(O)).items()}
    before = {name: value.clone() for name, value in old.items()}
    estimator.refresh(old, I, O, Clock.at(3, 2, 5))
    estimator.estimate(old, I, Clock.at(3, 2, 5))
    assert all(torch.equal(old[name], before[name]) for name in before)


@every_estimator
def test_there_is_one_coefficient_per_difference_term_in_float32(estimator: Estimator) -> None:
    I, O = torch.randn(N, T, D).half(), torch.randn(N, T, E).half()
    state = estimator.refresh(poison(estimator, I, O), I, O, Clock.at(1, 0, 0))
    c = estimator.coefficients(state, I, Clock.at(1, 0, 1))
    assert len(c) == estimator.orders
    assert all(value.dtype == torch.float32 for value in c)


@pytest.mark.parametrize(("per", "shape"), [("sample", (2, 1, 1, 1)), ("token", (2, 3, 4, 1)), ("tensor", (1, 1, 1, 1))])
def test_a_scalar_is_formed_per_sample_per_token_or_over_the_whole_tensor(per: Any, shape: tuple[int, ...]) -> None:
    a = torch.randn(2, 3, 4, 5)
    assert norm(a, per).shape == shape == scalar_shape(tuple(a.shape), per)
    assert_close(norm(a, per).square().sum(), a.square().sum(), ROUND)


def test_combine_adds_the_weighted_differences_in_float32_and_returns_the_type_of_the_output() -> None:
    O, dO = torch.full((1, 1, 2), 2048.0).half(), torch.full((1, 1, 2), 0.5).half()
    got = combine(O, [dO, dO, dO, dO], [torch.tensor(1.0)] * 4)  # in float16 2048 + 0.5 is 2048
    assert got.dtype == torch.float16
    assert torch.equal(got, torch.full((1, 1, 2), 2050.0).half())


def test_combine_without_terms_is_the_output_itself() -> None:
    O = torch.randn(1, 2, 3)
    assert combine(O, [], []) is O


# --- differences -----------------------------------------------------------------------------------------------------


def recursion(values: list[Tensor], gaps: list[int], order: int) -> list[Tensor]:
    """f_0 .. f_order by the published recursion, in float64 and with lists that grow: f_{i+1} = (f_i - f_i of before) / gap."""
    f = [values[0].double()]
    for value, gap in zip(values[1:], gaps, strict=True):
        fresh = [value.double()]
        for before in f[:order]:
            fresh.append((fresh[-1] - before) / gap)
        f = fresh
    return f


@given(seeds, gaps, st.integers(1, 4))
def test_divided_differences_follow_the_published_recursion_with_unequal_gaps(seed: int, between: list[int], order: int) -> None:
    values = [normal(seed + i, 3, 4) for i in range(len(between) + 1)]
    f = [torch.full((3, 4), math.nan)] * (order + 1)
    for n, value in enumerate(values):
        f = divided_differences(value, f, Clock.at(between[n - 1] if n else 1, 0, n))
    wanted = recursion(values, between, order)
    for got, reference in zip(f, wanted, strict=False):
        assert_close(got, reference, FORECAST)
    for missing in f[len(wanted) :]:
        assert torch.equal(missing, torch.zeros(3, 4))


@given(seeds, gaps, st.integers(1, 4))
def test_shifted_differences_are_the_changes_between_neighbouring_full_steps(seed: int, between: list[int], order: int) -> None:
    values = [normal(seed + i, 3, 4) for i in range(len(between) + 1)]
    X = [torch.full((3, 4), math.nan)] * (order + 1)
    for n, value in enumerate(values):
        X = shifted_differences(value, X, Clock.at(between[n - 1] if n else 1, 0, n))
    changes = [new - old for new, old in zip(values[1:], values, strict=False)][::-1][:order]
    for got, wanted in zip(X, [values[-1], *changes], strict=False):
        assert torch.equal(got, wanted)
    for missing in X[len(changes) + 1 :]:
        assert torch.equal(missing, torch.zeros(3, 4))


# --- Taylor ----------------------------------------------------------------------------------------------------------


@given(seeds, gaps, ahead, st.integers(1, 4))
def test_taylor_is_the_sum_of_the_recursion_over_factorials(seed: int, between: list[int], k: int, order: int) -> None:
    full = positions(between)
    values = {position: normal(seed + i, N, T, E) for i, position in enumerate(full)}
    got = forecast(Taylor(order=order), lambda s: torch.zeros(N, T, D), values.__getitem__, full, full[-1] + k)
    terms = [f * k**i / math.factorial(i) for i, f in enumerate(recursion(list(values.values()), between, order))]
    assert_close(got, sum(terms[1:], terms[0]), FORECAST, beside=torch.stack(terms))


@given(seeds, gaps, ahead, st.integers(1, 4))
def test_taylor_of_any_order_reproduces_a_straight_line(seed: int, between: list[int], k: int, order: int) -> None:
    start, slope = normal(seed, N, T, E), normal(seed + 1, N, T, E)
    full = positions(between)
    got = forecast(Taylor(order=order), lambda s: start, lambda s: start + s * slope, full, full[-1] + k)
    assert_close(got, start + (full[-1] + k) * slope, 4 * FORECAST, beside=start.abs() + full[-1] * slope.abs())


@given(st.integers(1, 6), ahead)
def test_taylor_of_order_two_misses_a_parabola_by_k_times_the_gap(gap: int, k: int) -> None:
    full = [0, gap, 2 * gap]
    got = forecast(Taylor(order=2), lambda s: torch.zeros(1, 1, 1), lambda s: torch.full((1, 1, 1), float(s * s)), full, full[-1] + k)
    assert_close(got, torch.full((1, 1, 1), float((full[-1] + k) ** 2 - k * gap)), ROUND)


# --- reuse and available order ---------------------------------------------------------------------------------------


@every_estimator
@given(seed=seeds, k=ahead)
def test_with_one_anchor_the_output_is_reused_whatever_an_earlier_generation_left(estimator: Estimator, seed: int, k: int) -> None:
    got = forecast(estimator, lambda s: normal(seed + int(s), N, T, D), lambda s: normal(seed, N, T, E), [0], k)
    assert torch.equal(got, normal(seed, N, T, E))


@given(seed=seeds, between=gaps, k=ahead)
def test_taylor_with_too_few_anchors_has_the_order_they_allow(seed: int, between: list[int], k: int) -> None:
    full = positions(between)
    I, O = (lambda s: torch.zeros(N, T, D)), (lambda s: normal(seed + int(s), N, T, E))
    allowed, asked = Taylor(order=len(between)), Taylor(order=len(between) + 2)
    assert torch.equal(forecast(asked, I, O, full, full[-1] + k), forecast(allowed, I, O, full, full[-1] + k))


@pytest.mark.parametrize("norm", ["sample", "token", "tensor"])
@given(seed=seeds, gap=st.integers(1, 6), k=ahead)
def test_rfe_of_order_two_with_two_anchors_is_rfe_of_order_one(norm: Any, seed: int, gap: int, k: int) -> None:
    I, O = (lambda s: normal(seed + int(s), N, T, D)), (lambda s: normal(seed + 99 + int(s), N, T, E))
    two, one = (forecast(RFE(order=order, norm=norm), I, O, [0, gap], gap + k) for order in (2, 1))
    assert_close(two, one, FORECAST)


@settings(max_examples=72)
@given(per=st.sampled_from(["sample", "token"]), order=st.integers(2, 4), seed=seeds, gap=st.integers(1, 6), k=ahead)
def test_projective_with_two_anchors_is_projective_of_order_one(per: Any, order: int, seed: int, gap: int, k: int) -> None:
    I, O = (lambda s: normal(seed + int(s), N, T, D)), (lambda s: normal(seed + 99 + int(s), N, T, E))
    more, one = (forecast(Projective(order=m, per=per), I, O, [0, gap], gap + k) for m in (order, 1))
    assert_close(more, one, 4 * ridge_bias(1e-4))


# --- relational estimation -------------------------------------------------------------------------------------------


@every_estimator
@given(seed=seeds, between=gaps, k=ahead)
def test_estimate_with_an_input_that_never_moved_returns_the_full_output(
    estimator: Estimator, seed: int, between: list[int], k: int
) -> None:
    full = positions(between)
    got = forecast(estimator, lambda s: normal(seed, N, T, D), lambda s: normal(seed + 1, N, T, E), full, full[-1] + k)
    assert torch.equal(got, normal(seed + 1, N, T, E))


@every_relational
@given(seed=seeds, between=gaps, k=ahead)
def test_estimate_with_the_input_of_the_last_full_step_returns_its_output(
    estimator: Estimator, seed: int, between: list[int], k: int
) -> None:
    full = positions(between)
    I, O = (lambda s: normal(seed + min(int(s), full[-1]), N, T, D)), (lambda s: normal(seed + 99 + int(s), N, T, E))
    assert torch.equal(forecast(estimator, I, O, full, full[-1] + k), O(full[-1]))


@pytest.mark.parametrize("norm", ["sample", "token", "tensor"])
@given(seed=seeds, between=gaps, k=ahead)
def test_rfe_with_an_input_moving_linearly_is_taylor_of_order_one_and_kappa_is_k_over_n(
    norm: Any, seed: int, between: list[int], k: int
) -> None:
    start, slope = normal(seed, N, T, D), normal(seed + 1, N, T, D)
    I, O = (lambda s: start + s * slope), (lambda s: normal(seed + 2 + int(s), N, T, E))
    full = positions(between)
    estimator = RFE(order=1, norm=norm)
    state = remember(estimator, I, O, full)
    (c,) = estimator.coefficients(state, I(full[-1] + k), clock_of(full, full[-1] + k))
    kappa, N_ = c / between[-1], between[-1]
    assert_close(kappa, torch.full_like(kappa, k / N_), FORECAST)
    assert_close(forecast(estimator, I, O, full, full[-1] + k), forecast(Taylor(order=1), I, O, full, full[-1] + k), FORECAST)


def per_norm(a: Tensor, per: str) -> Tensor:
    axes = {"sample": (1, 2), "token": (2,), "tensor": (0, 1, 2)}[per]
    return torch.linalg.vector_norm(a.double(), dim=axes, keepdim=True)


@pytest.mark.parametrize("per", ["sample", "token", "tensor"])
@pytest.mark.parametrize("order", [1, 2])
@given(seed=seeds, between=st.lists(st.integers(1, 6), min_size=2, max_size=3), k=ahead)
def test_rfe_is_the_published_formula(per: Any, order: int, seed: int, between: list[int], k: int) -> None:
    """O(t) + s_N ||I(t-k) - I(t)|| g(d), every norm taken of the tensors themselves, in float64."""
    full = positions(between)
    I, O = (lambda s: normal(seed + int(s), N, T, D)), (lambda s: normal(seed + 99 + int(s), N, T, E))
    f = recursion([O(s) for s in full], between, order)
    d = torch.stack([f[i] * k**i / math.factorial(i) for i in range(1, order + 1)]).sum(0)
    s_N = per_norm(O(full[-1]) - O(full[-2]), per) / per_norm(I(full[-1]) - I(full[-2]), per)
    step = s_N * per_norm(I(full[-1] + k) - I(full[-1]), per) * d / per_norm(d, per)
    got = forecast(RFE(order=order, norm=per), I, O, full, full[-1] + k)
    assert_close(got - O(full[-1]), step, GRAM if order == 2 else FORECAST, beside=step.abs() + O(full[-1]).abs())


speeds = st.lists(st.floats(0.25, 4.0), min_size=2, max_size=4)


@pytest.mark.parametrize("norm", ["sample", "token", "tensor"])
@given(seed=seeds, moves=speeds, last=st.floats(0.25, 4.0))
def test_rfe_predicts_an_affine_module_exactly_while_the_input_moves_along_one_line(
    norm: Any, seed: int, moves: list[float], last: float
) -> None:
    start, along, module = normal(seed, N, T, D), normal(seed + 1, N, T, D), affine(seed + 2)
    reached = [sum(moves[:i]) for i in range(len(moves) + 1)] + [sum(moves) + last]
    I = lambda s: start + reached[int(s)] * along  # noqa: E731
    full = list(range(len(moves) + 1))
    got = forecast(RFE(order=1, norm=norm), I, lambda s: module(I(s)), full, len(reached) - 1)
    assert_close(got, module(I(len(reached) - 1)), FORECAST, beside=module(I(0)).abs() + module(I(len(moves))).abs())


@given(seed=seeds, there=st.floats(0.25, 4.0), back=st.floats(0.25, 4.0))
def test_rfe_mirrors_a_motion_that_reverses_and_projective_follows_it(seed: int, there: float, back: float) -> None:
    start, along, module = normal(seed, N, T, D), normal(seed + 1, N, T, D), affine(seed + 2)
    reached = [0.0, there, there - back]
    I = lambda s: start + reached[int(s)] * along  # noqa: E731
    O = lambda s: module(I(s))  # noqa: E731
    size = O(1).abs() + (there + back) * (O(2) - O(1)).abs()
    assert_close(forecast(RFE(order=1), I, O, [0, 1], 2), O(1) + (O(1) - O(2)), FORECAST * (1 + 4 * back / there), beside=size)
    for order in (1, 2, 3, 4):
        assert_close(forecast(Projective(order=order), I, O, [0, 1], 2), O(2), 4 * ridge_bias(1e-4), beside=size)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@settings(max_examples=48)
@given(per=st.sampled_from(["sample", "token"]), ridge=st.sampled_from([1e-4, 1e-3]), seed=seeds, data=st.data())
def test_projective_predicts_an_affine_module_while_the_input_stays_in_the_span_of_its_past_moves(
    per: Any, order: int, ridge: float, seed: int, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.floats(0.5, 2.0), min_size=order, max_size=order))
    mixture = data.draw(st.lists(st.floats(-2.0, 2.0), min_size=order, max_size=order))
    between = data.draw(st.lists(st.integers(1, 6), min_size=order, max_size=order))
    start, module = normal(seed, N, T, D), affine(seed + 2)
    directions = torch.linalg.qr(normal(seed + 1, N, T, D, order)).Q.unbind(-1)
    moves = [size * direction for size, direction in zip(sizes, directions, strict=True)]
    full = positions(between)
    inputs = {position: start + sum(moves[:i], torch.zeros(())) for i, position in enumerate(full)}
    step = torch.stack([weight * move for weight, move in zip(mixture, moves, strict=True)])
    inputs[full[-1] + 3] = inputs[full[-1]] + step.sum(0)
    got = forecast(Projective(order=order, per=per, ridge=ridge), inputs.__getitem__, lambda s: module(inputs[s]), full, full[-1] + 3)
    wanted = module(inputs[full[-1] + 3])
    assert_close(got, wanted, 4 * ridge_bias(ridge, condition=16), beside=module(start).abs() + wanted.abs())


@pytest.mark.parametrize("per", ["sample", "token"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_projective_keeps_the_past_moves_from_cancelling_when_they_lie_on_one_line(order: int, per: Any) -> None:
    start, along, module = normal(0, N, T, D), normal(1, N, T, D), affine(2)
    I = lambda s: start + s * along  # noqa: E731
    full = list(range(order + 1))
    got = forecast(Projective(order=order, per=per), I, lambda s: module(I(s)), full, full[-1] + 2)
    wanted = module(I(full[-1] + 2))
    assert_close(got, wanted, 4 * ridge_bias(1e-4), beside=module(start).abs() + wanted.abs())


@pytest.mark.parametrize("ridge", [1e-5, 1e-4])
def test_projective_is_finite_for_every_ridge_it_accepts(ridge: float) -> None:
    for order in (2, 3, 4):
        for seed in range(30):
            start, along = normal(seed, 1, 64, 32), normal(seed + 1, 1, 64, 32)
            path = [start + s * along for s in range(order + 3)]
            got = forecast(Projective(order=order, ridge=ridge), path.__getitem__, path.__getitem__, list(range(order + 1)), order + 2)
            assert got.isfinite().all(), f"order {order}, seed {seed}"


@every_estimator
@given(seed=seeds, between=gaps, k=ahead, sign=st.sampled_from([-1, 1]), exponent=st.integers(-8, 8))
def test_scaling_the_output_scales_the_estimate(
    estimator: Estimator, seed: int, between: list[int], k: int, sign: int, exponent: int
) -> None:
    full = positions(between)
    I, O = (lambda s: normal(seed + int(s), N, T, D)), (lambda s: normal(seed + 99 + int(s), N, T, E))
    c = sign * 2.0**exponent  # powers of two: no rounding
    scaled = forecast(estimator, I, lambda s: c * O(s), full, full[-1] + k)
    assert torch.equal(scaled, c * forecast(estimator, I, O, full, full[-1] + k))


@every_relational
@given(seed=seeds, between=gaps, k=ahead, exponent=st.integers(-8, 8))
def test_the_scale_of_the_input_does_not_matter(estimator: Estimator, seed: int, between: list[int], k: int, exponent: int) -> None:
    full = positions(between)
    I, O = (lambda s: normal(seed + int(s), N, T, D)), (lambda s: normal(seed + 99 + int(s), N, T, E))
    scaled = forecast(estimator, lambda s: 2.0**exponent * I(s), O, full, full[-1] + k)  # powers of two: no rounding
    assert torch.equal(scaled, forecast(estimator, I, O, full, full[-1] + k))


def batch_mates(estimator: Estimator, own: int) -> tuple[Tensor, Tensor]:
    """The estimates of sample `own` beside two different batch mates."""
    full, at = [0, 2, 5], 6

    def mixed(seed: int, channels: int) -> Path:
        def at_position(s: float) -> Tensor:
            tensor = normal(seed + int(s), N, T, channels)
            tensor[own] = normal(1000 + int(s), T, channels)
            return tensor

        return at_position

    one, other = (forecast(estimator, mixed(seed, D), mixed(seed + 50, E), full, at) for seed in (0, 500))
    return one[own], other[own]


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if getattr(e, "norm", "") != "tensor"], ids=label)
def test_the_estimate_of_a_sample_does_not_depend_on_its_batch_mates(estimator: Estimator) -> None:
    for own in (0, 1):
        one, other = batch_mates(estimator, own)
        assert torch.equal(one, other)


@pytest.mark.parametrize("order", [1, 2])
def test_with_the_norm_of_the_whole_tensor_batch_mates_share_their_coefficient(order: int) -> None:
    one, other = batch_mates(RFE(order=order, norm="tensor"), own=0)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("estimator", [RFE(order=1, norm="token"), RFE(order=2, norm="token"), Projective(order=2, per="token")], ids=label)
def test_per_token_the_estimate_of_a_token_does_not_depend_on_the_others(estimator: Estimator) -> None:
    def path(seed: int, channels: int) -> Path:
        return lambda s: torch.cat([normal(int(s), N, 1, channels), normal(seed + int(s), N, T - 1, channels)], dim=1)

    one, other = (forecast(estimator, path(seed, D), path(seed, E), [0, 2, 5], 6) for seed in (100, 500))
    assert torch.equal(one[:, 0], other[:, 0])
    assert not torch.allclose(one[:, 1:], other[:, 1:])


# --- nothing to divide by, and precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["sample", "token", "tensor"])
@pytest.mark.parametrize("order", [1, 2])
def test_rfe_is_taylor_where_the_input_stood_still_between_the_full_steps(order: int, norm: Any) -> None:
    I, O = (lambda s: normal(int(s > 5), N, T, D)), (lambda s: normal(99 + int(s), N, T, E))
    assert torch.equal(forecast(RFE(order=order, norm=norm), I, O, [0, 2, 5], 7), forecast(Taylor(order=order), I, O, [0, 2, 5], 7))


@pytest.mark.parametrize("order", [1, 2])
def test_a_sample_that_stood_still_does_not_disturb_one_that_moved(order: int) -> None:
    still = torch.tensor([0.0, 1.0]).reshape(2, 1, 1)
    start, along, O = normal(0, N, T, D), normal(1, N, T, D), lambda s: normal(99 + int(s), N, T, E)
    moving, mixed = (lambda s: start + s * s * along), (lambda s: start + s * s * along * still)
    both, one = (forecast(RFE(order=order), I, O, [0, 2, 5], 7) for I in (moving, mixed))
    taylor = forecast(Taylor(order=order), moving, O, [0, 2, 5], 7)
    assert torch.equal(one[1], both[1])
    assert torch.equal(one[0], taylor[0])


@pytest.mark.parametrize("per", ["sample", "token"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_projective_without_any_past_move_takes_k_over_n(order: int, per: Any) -> None:
    I, O = (lambda s: normal(int(s > 7), N, T, D)), (lambda s: normal(99 + int(s), N, T, E))
    got = forecast(Projective(order=order, per=per), I, O, [0, 3, 7], 9)
    assert_close(got, O(7) + 2 / 4 * (O(7) - O(3)), FORECAST)


def test_rfe_of_order_two_stays_where_its_direction_vanishes() -> None:
    """f_1 = v and f_2 = -2v: at k = 1 the forecast direction f_1 + f_2/2 is exactly zero."""
    v = torch.full((1, 2, 3), 1.0)
    reached = {0: 0.0, 1: 3.0, 2: 4.0}
    got = forecast(RFE(order=2), lambda s: s * v, lambda s: reached[int(s)] * v, [0, 1, 2], 3)
    assert torch.equal(got, 4 * v)


lattice = st.lists(st.integers(-1, 1), min_size=8, max_size=8)
"""Inputs of two tokens with two channels, so coarse that moves often vanish, repeat or oppose each other."""


@every_estimator
@settings(max_examples=36)
@given(dtype=dtypes, steps=st.lists(st.tuples(lattice, lattice), min_size=2, max_size=6), k=ahead)
def test_the_estimate_of_finite_tensors_is_finite(estimator: Estimator, dtype: torch.dtype, steps: Any, k: int) -> None:
    I, O = ([torch.tensor(step[i], dtype=dtype).reshape(2, 2, 2) for step in steps] for i in (0, 1))
    full = [2 * i for i in range(len(steps) - 1)]
    got = forecast(estimator, lambda s: I[-1] if s > full[-1] else I[int(s) // 2], lambda s: O[int(s) // 2], full, full[-1] + k)
    assert got.isfinite().all()


@pytest.mark.parametrize("size", [1e-20, 1e-21, 1e-22])
def test_projective_is_finite_for_moves_whose_square_is_hardly_a_float32(size: float) -> None:
    I = lambda s: size * s * normal(0, 1, T, D)  # noqa: E731
    assert forecast(Projective(order=2), I, lambda s: normal(int(s), 1, T, E), [0, 1, 2], 3).isfinite().all()


@pytest.mark.parametrize("norm", ["sample", "token", "tensor"])
def test_rfe_reduces_in_float32_where_a_float16_sum_would_overflow(norm: Any) -> None:
    one = torch.ones(1, 64, 64, dtype=torch.float16)
    assert (one * 100).square().sum(dtype=torch.float32) > torch.finfo(torch.float16).max
    I, O = (lambda s: 100.0 * s * one), (lambda s: (s * one).half())
    for order in (1, 2):
        assert torch.equal(forecast(RFE(order=order, norm=norm), I, O, [0, 1, 2], 4), 4 * one)


@pytest.mark.parametrize("per", ["sample", "token"])
def test_projective_reduces_in_float32_where_a_float16_sum_would_overflow(per: Any) -> None:
    one = torch.ones(1, 64, 64, dtype=torch.float16)
    got = forecast(Projective(order=1, per=per), lambda s: 100.0 * s * one, lambda s: s * one, [0, 1], 3)
    assert_close(got, 3 * one, HALF[torch.float16])


def test_inner_products_are_float32_for_half_precision_tensors() -> None:
    a = torch.full((1, 512), 2.0, dtype=torch.bfloat16)
    assert inner(a, a, "sample").dtype == torch.float32
    assert inner(a, a + 0.015625, "sample") == 512 * 2 * 2.015625


@every_estimator
def test_estimates_in_bfloat16_follow_those_in_float32_to_the_rounding_of_the_state(estimator: Estimator) -> None:
    I, O = (lambda s: normal(int(s), N, T, D).bfloat16()), (lambda s: normal(99 + int(s), N, T, E).bfloat16())
    half = forecast(estimator, I, O, [0, 2, 5], 6)
    full = forecast(estimator, lambda s: I(s).float(), lambda s: O(s).float(), [0, 2, 5], 6)
    assert half.dtype == torch.bfloat16
    assert_close(half, full, 4 * HALF[torch.bfloat16])


@given(seed=seeds, size=st.integers(1, 4))
def test_the_unrolled_inverse_is_the_inverse(seed: int, size: int) -> None:
    root = normal(seed, 3, size, size)
    A = root @ root.mT + torch.eye(size)
    rows = [[A[:, i, j] for j in range(size)] for i in range(size)]
    got = torch.stack([torch.stack(row, -1) for row in positive_definite_inverse(rows)], -2)
    assert_close(got, torch.linalg.inv(A.double()), FORECAST, beside=torch.linalg.inv(A.double()))


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Taylor(order=0), r"^Taylor: order must be an integer of at least 1, got 0$"),
        (lambda: Taylor(order=1.0), r"^Taylor: order must be an integer of at least 1, got 1\.0$"),
        (lambda: Taylor(order=True), r"^Taylor: order must be an integer of at least 1, got True$"),
        (lambda: RFE(order=3), r"^RFE: order must be an integer from 1 to 2, got 3$"),
        (lambda: RFE(order=0), r"^RFE: order must be an integer from 1 to 2, got 0$"),
        (lambda: RFE(norm="channel"), r"^RFE: norm must be one of sample, token, tensor, got 'channel'$"),
        (lambda: Projective(order=5), r"^Projective: order must be an integer from 1 to 4, got 5$"),
        (lambda: Projective(per="tensor"), r"^Projective: per must be sample or token, got 'tensor'$"),
        (lambda: Projective(ridge=0.0), r"^Projective: ridge must be in \[.*, 1\), got 0\.0; smaller is below float32's resolution$"),
        (lambda: Projective(ridge=1.0), r"^Projective: ridge must be in \[.*, 1\), got 1\.0"),
        (lambda: Projective(ridge=math.nan), r"^Projective: ridge must be in \[.*, 1\), got nan"),
    ],
)
def test_an_estimator_refuses_what_it_cannot_mean_and_says_what_it_wanted(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@every_estimator
def test_an_estimator_is_a_value(estimator: Estimator) -> None:
    assert estimator == copy.deepcopy(estimator) == pickle.loads(pickle.dumps(estimator))
    assert hash(estimator) == hash(copy.deepcopy(estimator))
    with pytest.raises(AttributeError):
        estimator.order = 3  # type: ignore[attr-defined]


def test_only_the_relational_estimators_need_the_input_of_a_skipped_step() -> None:
    assert {type(e) for e in ESTIMATORS if e.needs_input} == {RFE, Projective}
