"""Refined linear predictions: least squares in whole generations, on samplers whose answer is known."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import rfc
from rfc.bookkeeping import clock_tensors
from rfc.placement.gauss_newton import System
from rfc.placement.moved_steps import Curve, in_order, intervals
from rfc.state import spec_of

STEPS, CPU = 8, torch.device("cpu")


def start(full_steps: tuple[int, ...] = (0, 2, 5), order: int = 1) -> rfc.Method:
    schedule = rfc.Weighted(full_steps=full_steps, num_steps=STEPS, weights=[(0.0,) * order] * STEPS)
    return rfc.Method(estimator=rfc.LinearPrediction(order=order), schedule=schedule, granularity="stack")


def sampler(model: Callable[[Tensor, int], Tensor], noise: Tensor, *, drawn: list[rfc.Method] | None = None) -> Any:
    """Draws with Euler steps of 1 / STEPS; the model is computed at full steps alone."""

    def draw(method: rfc.Method | None) -> Tensor:
        if drawn is not None and method is not None:
            drawn.append(method)
        x, record, state = noise, rfc.Record(), dict[str, Tensor]()
        for step in range(STEPS):
            if method is None:
                x = x + model(x, step) / STEPS
                continue
            if not state:
                state = {name: torch.zeros(spec.shape) for name, spec in method.estimator.slots(spec_of(x), spec_of(x)).items()}
            clock = clock_tensors(record.clock(method.schedule), CPU)
            if record.decide(method.schedule, method.schedule.numbers(), None, None) == "FULL":
                O = model(x, step)
                x, state = x + (O + method.estimator.correction(state, O, O, clock)) / STEPS, method.estimator.refresh(state, O, O, clock)
            else:
                x = x + method.estimator.estimate(state, x, clock) / STEPS
        return x

    return draw


def curved(x: Tensor, step: int) -> Tensor:
    return torch.sin(x + 0.5 * step) - 0.5 * x


NOISE = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def error(samples: Tensor, reference: Tensor) -> float:
    return float((samples - reference).norm() / reference.norm())


def test_what_a_combination_of_outputs_can_give_is_found_in_one_round() -> None:
    draw = sampler(lambda x, step: NOISE * (1 + step) ** 2, NOISE)  # the samples are linear in the weights
    reference = draw(None)
    found = rfc.refined(start(), draw, reference, rounds=1)
    assert error(draw(start()), reference) > 0.1
    assert error(draw(found), reference) < 1e-2
    assert found.schedule.full_steps == (0, 2, 5)  # type: ignore[attr-defined]
    assert found.granularity == "stack"
    assert found.name == "refined"


def test_rounds_bring_samples_nearer_and_other_seeds_too() -> None:
    draw, other = sampler(curved, NOISE), sampler(curved, torch.randn(6, 5, generator=torch.Generator().manual_seed(1)))
    reference, judged = draw(None), other(None)
    once, found = (rfc.refined(start(), draw, reference, rounds=rounds) for rounds in (1, 3))
    assert error(draw(found), reference) <= error(draw(once), reference) < 0.5 * error(draw(start()), reference)
    assert error(other(found), judged) < error(other(start()), judged)


def test_it_draws_once_for_each_number_and_full_step_and_for_five_dampings_with_moved_steps_and_without() -> None:
    drawn: list[rfc.Method] = []
    said: list[str] = []
    draw = sampler(curved, NOISE, drawn=drawn)
    rfc.refined(start(), draw, draw(None), rounds=1, report=said.append)
    assert said == [f"refining, round 1 of 1: {number} of 8" for number in range(1, 9)]  # 1 + 2 + 3 numbers, and two full steps that move
    assert 1 + 8 + 5 <= len(drawn) <= 1 + 8 + 3 * 10
    assert drawn[0].estimator == rfc.LinearPrediction(order=3)
    assert [method.schedule.full_steps for method in drawn[7:9]] == [(0, 3, 5), (0, 2, 6)]  # type: ignore[attr-defined]
    drawn.clear()
    rfc.refined(start(), draw, draw(None), rounds=1, order=2, moves=False, report=said.append)
    assert said[-1] == "refining, round 1 of 1: 5 of 5"
    assert {method.schedule.full_steps for method in drawn} == {(0, 2, 5)}  # type: ignore[attr-defined]


def test_the_nearest_beginning_is_refined_and_one_of_another_granularity_that_is_almost_as_near() -> None:
    drawn: list[rfc.Method] = []
    said: list[str] = []
    draw = sampler(curved, NOISE, drawn=drawn)
    near, far = start((0, 2, 5)), start((0, 6, 7))
    found = rfc.refined([far, near], draw, draw(None), rounds=1, moves=False, report=said.append)
    assert found.schedule.full_steps == (0, 2, 5)  # type: ignore[attr-defined]
    assert len(said) == 6
    assert [method.schedule.full_steps for method in drawn].count((0, 6, 7)) == 1  # type: ignore[attr-defined]
    said.clear()
    rfc.refined([far, near, replace(near, granularity="output")], draw, draw(None), rounds=1, moves=False, report=said.append)
    assert len(said) == 2 * 6
    said.clear()
    rfc.refined([far, near, replace(near, granularity="output")], draw, draw(None), rounds=2, moves=False, report=said.append)
    assert len(said) == 3 * 6  # the second round with the nearest alone
    broken = [far, near, replace(near, granularity="output")]
    kept = rfc.refined(broken, lambda method: draw(method) * (torch.nan if method.granularity == "output" else 1), draw(None), rounds=1)
    assert kept.granularity == "stack"  # a beginning that draws no numbers is left out
    with pytest.raises(ValueError, match="at least one method"):
        rfc.refined([], draw, draw(None))


def test_samples_that_no_weight_and_no_step_changes_leave_the_beginning() -> None:
    reference = NOISE + 1
    found = rfc.refined(start(), lambda method: NOISE, reference)
    assert found.schedule == replace(start(order=3), name="refined").schedule
    assert found.schedule.full_steps == (0, 2, 5)  # type: ignore[attr-defined]


def test_full_steps_move_to_where_the_model_changes_and_their_weights_are_stretched() -> None:
    def bent(x: Tensor, step: int) -> Tensor:  # the same up to step 4, and another from there
        return NOISE if step < 4 else torch.sin(3 * NOISE) * 2

    draw = sampler(bent, NOISE)
    reference = draw(None)
    found = rfc.refined(start((0, 3)), draw, reference, rounds=1, order=1)
    assert found.schedule.full_steps[1] >= 4  # type: ignore[attr-defined]
    assert (
        error(draw(found), reference)
        < 1e-2
        < error(draw(rfc.refined(start((0, 3)), draw, reference, rounds=1, order=1, moves=False)), reference)
    )


def test_each_sample_counts_alike_however_far_it_is_off() -> None:
    reference = torch.eye(6)
    side = reference.roll(1, 0)

    def draw(method: rfc.Method) -> Tensor:  # five want the weight 1; the last, a hundred times as far off and never near, 0
        w = method.schedule.weights[1][0]  # type: ignore[attr-defined]
        return reference + torch.tensor([0.01 * (w - 1)] * 5 + [w])[:, None] * reference + torch.tensor([0.0] * 5 + [0.3])[:, None] * side

    half = rfc.Weighted(full_steps=(0,), num_steps=2, weights=[(0.0,), (0.5,)])
    begin = rfc.Method(estimator=rfc.LinearPrediction(order=1), schedule=half)
    found = rfc.refined(begin, draw, reference, rounds=3)
    assert 0.9 < found.schedule.weights[1][0] < 1.1  # type: ignore[attr-defined]


def test_what_came_of_a_step_is_told_by_the_jacobian_after_it() -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian, before, after = (torch.randn(*shape, generator=generator) for shape in ((3, 4, 5), (3, 4), (3, 4)))
    moved = torch.randn(5, generator=generator)
    known = jacobian.clone()
    system = System(jacobian, before.double(), torch.ones(3, dtype=torch.float64))
    system.learn(moved, after.double())
    torch.testing.assert_close(system.jacobian @ moved, after - before)
    across = torch.linalg.svd((system.scale.float() * moved)[None])[2][1]  # in the measure of the system, at right angles
    torch.testing.assert_close(system.jacobian @ across, known @ across, rtol=1e-3, atol=1e-4)
    assert not torch.equal(system.jacobian @ moved, known @ moved)


def test_between_the_steps_that_an_interval_had_its_weights_are_interpolated() -> None:
    schedule = rfc.Weighted(full_steps=(0, 4), num_steps=8, weights=[(0.0,), (1.0,), (2.0,), (3.0,), (0.5,), (2.0,), (4.0,), (6.0,)])
    first, second = (Curve(schedule, *ends) for ends in intervals(schedule.full_steps, schedule.num_steps))
    assert [float(second.at(share)[0]) for share in (0, 0.25, 0.5, 0.75)] == [0.5, 2.0, 4.0, 6.0]
    assert [float(first.at(share)[0]) for share in (0.125, 0.375, 0.875)] == pytest.approx([0.5, 1.5, 3.5])
    assert float(Curve(schedule, 4, 5).at(0.5)[0]) == 0.0  # nothing was skipped there
    assert in_order([0, 9, 3, 3], 8) == (0, 5, 6, 7)
    assert in_order([0, 0, -2], 8) == (0, 1, 2)


def test_a_beginning_that_nothing_is_nearer_than_stays() -> None:
    draw = sampler(lambda x, step: NOISE, NOISE)
    found = rfc.refined(start(order=3), draw, draw(start(order=3)))
    assert found.schedule.weights == start(order=3).schedule.weights  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (rfc.FORA(), {}, "refined: methods must have weights"),
        (start(), {"rounds": 0}, "refined: rounds must be an integer"),
        (start(), {"order": 0}, "refined: order must be an integer of at least 1, got 0"),
        (start(), {"delta": 0.0}, r"refined: delta must be a number above 0, got 0\.0"),
        (start(), {"delta": float("nan")}, "refined: delta must be a number above 0, got nan"),
        (start(), {"order": 99}, "order must be an integer from 1 to 16"),
    ],
)
def test_what_cannot_be_refined_is_refused(method: rfc.Method, options: dict[str, Any], said: str) -> None:
    draw = sampler(curved, NOISE)
    with pytest.raises(ValueError, match=said):
        rfc.refined(method, draw, draw(None), **options)


def test_samples_of_another_shape_or_no_numbers_are_refused() -> None:
    draw = sampler(curved, NOISE)
    with pytest.raises(ValueError, match=r"the reference's shape \(6, 4\), got \(6, 5\)"):
        rfc.refined(start(), draw, torch.zeros(6, 4))
    with pytest.raises(ValueError, match="are no numbers; begin with another method"):
        rfc.refined(start(), lambda method: draw(method) * torch.nan, draw(None))
    with pytest.raises(ValueError, match=r"weights moved by 0\.001 draw samples that are no numbers; pass a smaller delta"):
        rfc.refined(start(), lambda method: draw(method) / (method.schedule.weights[2][0] == 0), draw(None))  # type: ignore[attr-defined]
