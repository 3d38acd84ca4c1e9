"""Linear prediction: the weights of a schedule's table, what they leave out, and the correction of full steps."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FORECAST
from torch import Tensor

from rfc import Clock, LinearPrediction, LogSNR, Method, Newton, Record, Reuse, Weighted
from rfc.bookkeeping import clock_tensors
from rfc.encoding import decode_method, encode_method
from rfc.placement.weighted import newton_weights, unfitted
from rfc.schedules.base import NoiseLevels
from rfc.state import spec_of, zeros

CPU = torch.device("cpu")


def outputs(count: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, generator=draw) for _ in range(count)]


def weighted(full_steps: list[int], num_steps: int, seed: int = 0, order: int = 2) -> Weighted:
    draw = torch.Generator().manual_seed(seed)
    return Weighted(full_steps=full_steps, num_steps=num_steps, weights=torch.randn(num_steps, order, generator=draw).tolist())


def drawn(method: Method, O: list[Tensor], forced: tuple[int, ...] = ()) -> list[Tensor]:
    """What each step hands on, and where the steps in `forced` are full for another reason."""
    state = {name: torch.full(spec.shape, math.nan) for name, spec in method.estimator.slots(spec_of(O[0]), spec_of(O[0])).items()}
    record, numbers, made = Record(), method.schedule.numbers(), []
    for step, output in enumerate(O):
        clock = clock_tensors(record.clock(method.schedule), CPU)
        phase = record.decide(method.schedule, numbers, None, None)
        if phase == "FULL" or step in forced:
            made.append(output + method.estimator.correction(state, output, output, clock))
            state = method.estimator.refresh(state, output, output, clock)
        else:
            made.append(method.estimator.estimate(state, output, clock))
    return made


def test_every_step_adds_its_weighted_changes_between_full_steps_and_the_first_output_is_one() -> None:
    O, schedule = outputs(8), weighted([0, 1, 3, 6], 8)
    c = torch.tensor(schedule.weights)
    got = drawn(Method(estimator=LinearPrediction(order=2), schedule=schedule), O)
    D = {0: O[0], 1: O[1] - O[0], 3: O[3] - O[1], 6: O[6] - O[3]}
    wanted = {
        0: O[0],
        1: O[1] + c[1, 0] * D[1] + c[1, 1] * D[0],
        2: O[1] + c[2, 0] * D[1] + c[2, 1] * D[0],
        3: O[3] + c[3, 0] * D[3] + c[3, 1] * D[1],
        4: O[3] + c[4, 0] * D[3] + c[4, 1] * D[1],
        6: O[6] + c[6, 0] * D[6] + c[6, 1] * D[3],
        7: O[6] + c[7, 0] * D[6] + c[7, 1] * D[3],
    }
    for step, value in wanted.items():
        torch.testing.assert_close(got[step], value)


def test_steps_beyond_the_list_have_the_last_full_output() -> None:
    O = outputs(6)
    got = drawn(Method(estimator=LinearPrediction(order=2), schedule=weighted([0, 2], 4)), O)
    assert torch.equal(got[4], O[2])
    assert torch.equal(got[5], O[2])


def test_weights_hold_only_after_the_full_step_that_they_were_made_for() -> None:
    schedule = weighted([0, 1, 5], 8)
    numbers = schedule.numbers()
    table = torch.tensor(schedule.weights)
    at = {(step, k): Weighted.weights_at(numbers, *torch.tensor([step, k]).float()) for step in range(8) for k in (1, 2, 4)}
    assert torch.equal(at[2, 1], table[2])
    assert torch.equal(at[5, 4], table[5])
    assert not at[5, 1].any()  # a step between was full for another reason
    assert not at[3, 1].any()
    assert torch.equal(at[7, 2], table[7])


@given(st.sets(st.integers(1, 11), min_size=1, max_size=7), st.integers(1, 3), st.sampled_from([0.0, 0.5, 1.0]))
def test_newtons_polynomial_is_one_of_them(later: set[int], order: int, damping: float) -> None:
    full_steps, O = [0, *sorted(later)], outputs(12)
    method = LogSNR(lambdas=[float(i) for i in range(12)], order=order, damping=damping)
    placed = method.schedule.placed  # type: ignore[attr-defined]
    placed = type(placed)(full_steps=full_steps, num_steps=12, unit="interval")
    times = placed.numbers()["times"].double().tolist()
    rows = []
    for step in range(12):
        past = [] if step in full_steps else [full for full in full_steps if full < step][-(order + 1) :][::-1]
        found = newton_weights([times[full] for full in past], times[step], damping)
        rows.append((*found, *(0.0,) * (order - len(found))))
    mine = Method(estimator=LinearPrediction(order=order), schedule=Weighted(full_steps=full_steps, num_steps=12, weights=rows))
    newton = Method(estimator=Newton(order=order, damping=damping), schedule=placed)
    for got, wanted in zip(drawn(mine, O), drawn(newton, O), strict=True):
        torch.testing.assert_close(got, wanted, rtol=FORECAST, atol=FORECAST)


def test_at_other_levels_it_is_log_snr() -> None:
    levels, other = (NoiseLevels(tuple(float(x) for x in torch.linspace(-4, top, 10)), None) for top in (3.0, 4.0))
    fitted = Weighted(full_steps=[0, 2, 5], num_steps=10, weights=[(0.1, 0.2, 0.3)] * 10, lambdas=levels.lambdas)
    assert fitted.bound(10, levels) is fitted
    assert fitted.bound(10) is fitted
    assert fitted.bound(10, NoiseLevels(tuple(x + 1e-4 for x in levels.lambdas), None)) is fitted
    placed = fitted.bound(10, other)
    assert placed == unfitted(other, 3, 3)
    assert placed.in_graph == fitted.in_graph  # the same programs
    assert placed.full_steps == LogSNR(lambdas=other.lambdas, nfc=3).schedule.full_steps  # type: ignore[attr-defined]
    assert not any(row[-1] for row in placed.weights)  # type: ignore[attr-defined]
    assert not any(map(any, (placed.weights[step] for step in placed.full_steps)))  # type: ignore[attr-defined]


def test_a_method_is_rebuilt_from_json() -> None:
    method = Method(estimator=LinearPrediction(order=1), schedule=weighted([0, 3], 5, order=1), name="fitted")
    assert decode_method(encode_method(method)) == method


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": [(0.1, 0.2)] * 3}, "a row for each of the 4 steps"),
        ({"weights": [(0.1, 0.2)] * 3 + [(0.1,)]}, "a row for each of the 4 steps"),
        ({"weights": [()] * 4}, "a row for each of the 4 steps"),
        ({"weights": 3}, "a row for each of the 4 steps"),
        ({"weights": [(0.1, math.nan)] * 4}, "weights of step 0 must be finite numbers"),
        ({"weights": [(0.1, 0.2)] * 4, "lambdas": [1.0]}, "lambdas must be 4 numbers"),
        ({"weights": [(0.1, 0.2)] * 4, "full_steps": [1]}, "full_steps must contain 0"),
    ],
)
def test_what_no_table_is_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Weighted(**({"full_steps": [0, 2], "num_steps": 4} | settings))


def test_estimator_and_schedule_need_each_other() -> None:
    with pytest.raises(ValueError, match="needs 3 weights for each step, and LogSNRPlaced has 0"):
        LogSNR(lambdas=[0.0, 1.0]).schedule and Method(estimator=LinearPrediction(), schedule=LogSNR(lambdas=[0.0, 1.0]).schedule)
    with pytest.raises(ValueError, match="Reuse needs 0 weights"):
        Method(estimator=Reuse(), schedule=weighted([0, 2], 4))


def test_a_first_step_reads_nothing_whatever_the_state_holds() -> None:
    estimator, O = LinearPrediction(order=2), outputs(1)[0]
    state = {name: torch.full_like(value, math.inf) for name, value in zeros(estimator.slots(spec_of(O), spec_of(O)), CPU).items()}
    clock = Clock.at(1.0, 0.0, 0.0, 0.3, 0.2)
    torch.testing.assert_close(estimator.correction(state, O, O, clock), 0.3 * O)
    after = estimator.refresh(state, O, O, clock)
    assert not after["dO2"].any()
    torch.testing.assert_close(estimator.estimate(after, O, Clock.at(1.0, 0.0, 1.0, 0.3, 0.2)), 1.3 * O)
