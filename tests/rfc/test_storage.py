"""State in smaller types: what is kept, how far it is from what was given, what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rfc import RFC, RFE, Clock, Estimator, Projective, Reuse, Stored, Taylor, TaylorSeer
from rfc.state import SlotSpec, sketch, sketch_spec
from rfc.storage import SCALED, STORED, kept_like, scaled, stored

ESTIMATORS: list[Estimator] = [Reuse(), Taylor(order=2), RFE(order=2), Projective(order=2, per="token", sketch=3)]
seeds = st.integers(0, 10**6)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spec(X: Tensor) -> SlotSpec:
    return SlotSpec(tuple(X.shape), X.dtype)


def run(estimator: Estimator, steps: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The state after these full steps, two steps apart."""
    I, O = steps[0]
    state = {name: torch.zeros(slot.shape, dtype=slot.dtype) for name, slot in estimator.slots(spec(I), spec(O)).items()}
    for n, (I, O) in enumerate(steps):
        state = estimator.refresh(state, I, O, Clock.at(2, 2 if n > 1 else 0, n))
    return state


def walk(seed: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    return [(normal(seed + i, 2, 6, 8).to(dtype), normal(seed + 10 + i, 2, 6, 5).to(dtype)) for i in range(4)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@settings(max_examples=30)
@given(
    differences=st.sampled_from([None, *STORED]),
    outputs=st.sampled_from([None, torch.bfloat16, torch.int8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_slots_announce_what_refresh_returns_and_the_estimate_has_the_models_type(
    estimator: Estimator, differences: Any, outputs: Any, dtype: torch.dtype
) -> None:
    kept = Stored(estimator=estimator, differences=differences, outputs=outputs)
    steps = walk(0, dtype)
    I, O = steps[-1]
    state = run(kept, steps)
    assert {name: spec(X) for name, X in state.items()} == kept.slots(spec(I), spec(O))
    assert kept.estimate(state, I, Clock.at(1, 2, 3)).dtype is dtype
    bytes_kept = sum(X.nbytes for name, X in state.items() if not name.endswith("_scale"))
    assert bytes_kept <= sum(X.nbytes for X in run(estimator, steps).values())


@pytest.mark.parametrize("dtype", SCALED, ids=str)
@given(seed=seeds, exponent=st.integers(-20, 20))
def test_a_token_is_kept_to_half_a_step_of_its_own_scale(dtype: torch.dtype, seed: int, exponent: int) -> None:
    X = normal(seed, 3, 4, 16) * torch.logspace(-3, 3, 4).reshape(4, 1) * 2.0**exponent
    X[0, 0] = 0
    small, scale = scaled(X, dtype)
    assert small.dtype is dtype
    assert scale.shape == (3, 4, 1)
    error = (small.float() * scale - X).abs()
    half_step = scale / 2 if dtype is torch.int8 else torch.maximum(X.abs() / 16, scale * 2**-10)  # 3 bits after the leading one
    assert bool((error <= half_step * 1.001).all())
    assert not error[0, 0].any()


def test_a_type_that_is_no_smaller_changes_nothing() -> None:
    steps = walk(1, torch.bfloat16)
    plain, kept = RFE(order=2), Stored(estimator=RFE(order=2), differences=torch.bfloat16, outputs=torch.float16)
    for name, X in run(plain, steps).items():
        assert torch.equal(run(kept, steps)[name], X)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_with_the_input_of_the_last_full_step_the_output_is_exact_as_long_as_it_is_kept_as_it_is(estimator: Estimator) -> None:
    steps = walk(2)
    steps.append(steps[-1])
    kept = Stored(estimator=estimator, differences=torch.int8)
    assert torch.equal(kept.estimate(run(kept, steps), steps[-1][0], Clock.at(0, 2, 4)), steps[-1][1])


@pytest.mark.parametrize(("differences", "bound"), [(torch.bfloat16, 0.004), (torch.int8, 0.01), (torch.float8_e4m3fn, 0.05)], ids=str)
def test_the_estimate_is_near_that_of_the_full_state(differences: torch.dtype, bound: float) -> None:
    steps = walk(3)
    for estimator in ESTIMATORS[1:]:
        I, clock = normal(50, 2, 6, 8), Clock.at(1, 2, 4)
        exact = estimator.estimate(run(estimator, steps), I, clock)
        kept = Stored(estimator=estimator, differences=differences)
        error = (kept.estimate(run(kept, steps), I, clock) - exact).norm()
        assert 0 < error <= bound * (exact - steps[-1][1]).norm()


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 3, 9, 8), (7, 8)])
def test_a_sketch_is_every_nth_token_and_its_shape_is_known(shape: tuple[int, ...], every: int) -> None:
    I = normal(0, *shape)
    for per in ("sample", "token", "tensor"):
        small = sketch(I, every, per)
        assert spec(small) == sketch_spec(spec(I), every, per)
    if len(shape) == 3:
        assert torch.equal(sketch(I, every, "sample"), I[:, ::every])
        assert torch.equal(sketch(I, every, "token"), I[..., ::every])


@given(seed=seeds)
def test_rfe_with_a_sketch_holds_no_more_than_taylor_and_a_bit(seed: int) -> None:
    I, O = SlotSpec((2, 64, 32), torch.float32), SlotSpec((2, 64, 32), torch.float32)

    def numbers(estimator: Estimator) -> int:
        return sum(torch.Size(slot.shape).numel() for slot in estimator.slots(I, O).values())

    for order in (1, 2):
        assert numbers(RFE(order=order, sketch=16)) <= numbers(Taylor(order=order)) * 1.04
        assert numbers(Projective(order=order, sketch=16)) <= numbers(Taylor(order=order)) * 1.07


def test_a_method_with_another_threshold_keeps_its_state_as_before() -> None:
    old = stored(RFC(tau=0.1), torch.int8)
    assert isinstance(old.estimator, Stored)
    assert kept_like(old, RFC(tau=0.2)).estimator == old.estimator
    assert stored(TaylorSeer(), None) == TaylorSeer()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Stored(estimator=Reuse(), differences=torch.float64), "differences must be None or one of torch.bfloat16"),
        (lambda: Stored(estimator=Reuse(), outputs="int8"), "outputs must be None or one of"),
        (lambda: Stored(estimator=RFC()), "must be an rfc Estimator"),
        (lambda: Stored(estimator=Stored(estimator=Reuse())), "must be an rfc Estimator"),
        (
            lambda: Stored(estimator=Reuse(), outputs=torch.int8).slots(SlotSpec((2, 3), torch.float32), SlotSpec((2, 3), torch.bfloat16)),
            "input and output have one type",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(make: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        make()
