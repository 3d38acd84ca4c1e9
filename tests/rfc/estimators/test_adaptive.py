"""AdaptiveNewton: how much of a slope is carried on, what a full step takes back, and what it is told by the noise levels."""

import itertools
import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rfc
from rfc.bookkeeping import clock_tensors
from rfc.placement import nearest
from rfc.placement.nearest import corrections, flow_times, full_steps_at
from rfc.schedules.base import NoiseLevels
from rfc.state import spec_of, zeros

CPU = torch.device("cpu")


def drawn(method: rfc.Method, O: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What each step hands on, and the state at the end; what an earlier generation left is no number."""
    slots = method.estimator.slots(spec_of(O[0]), spec_of(O[0]))
    state = {name: torch.full(spec.shape, math.nan, dtype=spec.dtype) for name, spec in slots.items()}
    record, numbers, handed_on = rfc.Record(), method.schedule.numbers(), []
    for output in O:
        clock = clock_tensors(record.clock(method.schedule), CPU)
        if record.decide(method.schedule, numbers, None, None) == "FULL":
            handed_on.append(output + method.estimator.correction(state, output, output, clock))
            state = method.estimator.refresh(state, output, output, clock)
        else:
            handed_on.append(method.estimator.estimate(state, output, clock))
    return handed_on, state


def flow(shift: float, steps: int, nfc: int) -> rfc.Method:
    return rfc.LogSNR(FlowMatchEulerDiscreteScheduler(shift=shift), steps, nfc)


def polynomial(times: tuple[float, ...], *coefficients: float) -> list[Tensor]:
    """Outputs (2 samples, the second twice the first) that are a polynomial in the forecast's clock, in different directions."""
    draw = torch.Generator().manual_seed(0)
    directions = [torch.randn(1, 3, 4, generator=draw, dtype=torch.float64) for _ in coefficients]
    first = [sum((c * t**i * d for i, (c, d) in enumerate(zip(coefficients, directions, strict=True))), torch.zeros(1)) for t in times]
    return [torch.cat([O, 2 * O]) for O in first]


def flow_of(method: rfc.Method) -> tuple[tuple[float, ...], NoiseLevels]:
    schedule = method.schedule
    levels = NoiseLevels(schedule.lambdas, schedule.end, True)  # type: ignore[attr-defined]
    times = flow_times(levels, schedule.nfc)  # type: ignore[arg-type]
    assert times is not None
    return times, levels


def test_flows_have_it_unless_another_forecast_is_said() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    assert flow(3.0, 20, 6).estimator == rfc.AdaptiveNewton()
    assert rfc.LogSNR(scheduler, 20, 6, damping=0.5).estimator == rfc.Newton(order=2, damping=0.5)
    assert rfc.LogSNR(scheduler, 20, 6, order=1).estimator == rfc.Newton(order=1, damping=0.35)
    assert rfc.LogSNR(nfc=6).estimator == rfc.Newton(order=2, damping=0.5)


def test_outputs_that_go_straight_on_are_carried_on_straight() -> None:
    method = flow(3.0, 20, 7)
    times, _ = flow_of(method)
    O = polynomial(times, 1.0, -0.5)
    handed_on, _ = drawn(method, O)
    third = method.schedule.full_steps[2]  # type: ignore[attr-defined]
    for step in range(third, 20):
        torch.testing.assert_close(handed_on[step], O[step], rtol=1e-4, atol=1e-5)


def test_a_slope_that_does_not_last_is_not_carried_on() -> None:
    """Outputs that jump to and fro from one full step to the next: after the third the latest output is handed on as it is."""
    method = flow(3.0, 20, 7)
    full_steps = method.schedule.full_steps  # type: ignore[attr-defined]
    up = torch.ones(1, 3, 4)
    O = [up * (-1) ** sum(step >= full for full in full_steps) for step in range(20)]
    handed_on, state = drawn(method, O)
    assert (state["along"] < 0).all()
    last = full_steps[-1]
    assert all(torch.equal(handed_on[step], O[last]) for step in range(last + 1, 20))


def test_each_sample_is_weighed_by_its_own_slopes() -> None:
    method = flow(1.0, 28, 8)
    draw = torch.Generator().manual_seed(1)
    smooth = polynomial(flow_of(method)[0], 1.0, 1.0, 0.2)
    O = [torch.cat([one[:1].float(), torch.randn(1, 3, 4, generator=draw)]) for one in smooth]
    together, _ = drawn(method, O)
    for row in range(2):
        alone, _ = drawn(method, [output[row : row + 1] for output in O])
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both[row : row + 1], one)


@given(st.sampled_from([1.0, 3.0]), st.sampled_from([12, 28, 50]), st.integers(3, 12))
def test_a_full_step_takes_back_what_the_forecasts_before_it_did(shift: float, steps: int, nfc: int) -> None:
    """Where nothing is undone by the model (all is kept), a parabola's sum over a whole interval is that of full computation."""
    own = flow(shift, steps, nfc)
    times, levels = flow_of(own)
    full_steps = own.schedule.full_steps  # type: ignore[attr-defined]
    share, weights = nearest.shares(levels).tolist(), corrections(levels, full_steps, times)
    for step, after in itertools.pairwise((*full_steps[1:], steps)):
        left = share[after] / share[step]
        weights[step] = tuple(weight / (left + nearest.KEPT * (1 - left)) for weight in weights[step])
    schedule = rfc.Weighted(full_steps=full_steps, num_steps=steps, unit="interval", times=times, weights=weights)
    O = polynomial(times, 1.0, -0.5, 0.3)
    handed_on, _ = drawn(rfc.Method(estimator=rfc.AdaptiveNewton(), schedule=schedule), O)
    gains = nearest.turned(levels, "share").tolist()
    for before, step in itertools.pairwise(full_steps[1:]):
        interval = range(before + 1, step + 1)
        got, wanted = (sum(gains[k] * made[k] for k in interval) for made in (handed_on, O))
        assert isinstance(got, Tensor)
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_what_full_steps_are_told_is_what_its_definition_says() -> None:
    levels = rfc.noise_levels(FlowMatchEulerDiscreteScheduler(shift=3.0), 28)
    full_steps, times = full_steps_at(levels, 8), flow_times(levels, 8)
    assert times is not None
    sigma = [1 / (1 + math.exp(-level)) if level > -math.inf else 0.0 for level in levels.lambdas]
    sigma = [1 - alpha for alpha in sigma] + [0.0]
    gain = [a - b for a, b in itertools.pairwise(sigma)]
    rows = corrections(levels, full_steps, times)
    for step, row in enumerate(rows):
        if step not in full_steps[1:]:
            assert row == (0.0, 0.0)
            continue
        number = full_steps.index(step)
        before, after = full_steps[number - 1], (*full_steps, 28)[number + 1]
        left = sigma[after] / sigma[step]
        scale = left + 0.3 * (1 - left)
        for power, value in enumerate(row, start=1):
            wanted = scale * sum(gain[k] / gain[step] * (times[k] - times[before]) ** power for k in range(before + 1, step))
            assert value == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_generations_with_nothing_to_correct_are_handed_on_as_they_are(steps: int) -> None:
    method = flow(3.0, steps, 1)
    O = polynomial(tuple(range(steps)), 1.0, 1.0)
    handed_on, _ = drawn(method, O)
    assert all(torch.equal(made, O[0].to(made.dtype)) for made in handed_on)


def test_a_step_that_was_full_for_another_reason_takes_nothing_back() -> None:
    """The sums are those of the list's own intervals."""
    method = flow(3.0, 20, 5)
    numbers = method.schedule.numbers()
    step = torch.tensor(float(method.schedule.full_steps[2]))  # type: ignore[attr-defined]
    planned = float(step) - method.schedule.full_steps[1]  # type: ignore[attr-defined]
    told = [method.schedule.weights_at(numbers, step, torch.tensor(k)) for k in (planned, planned - 1)]
    assert told[0] is not None
    assert told[0].all()
    assert told[1] is not None
    assert not told[1].any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order": 3}, "order must be an integer from 2 to 2, got 3"),
        ({"order": True}, "order must be an integer from 2 to 2, got True"),
        ({"damping": 1.5}, r"damping must be from 0 \(a line\) to 1 \(the polynomial\), got 1.5"),
        ({"corrected": "yes"}, "corrected must be True or False, got 'yes'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"AdaptiveNewton: {said}"):
        rfc.AdaptiveNewton(**settings)


def test_a_list_that_tells_it_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"AdaptiveNewton needs 2 weights for each step, and Listed has 0; .*with rfc\.LogSNR of a flow"):
        rfc.Method(estimator=rfc.AdaptiveNewton(), schedule=rfc.Listed(full_steps=[0, 2]))


def test_its_state_begins_with_nothing() -> None:
    spec = spec_of(torch.zeros(2, 3, 4))
    state = zeros(rfc.AdaptiveNewton().slots(spec, spec), CPU)
    assert {name: tuple(tensor.shape) for name, tensor in state.items() if name in ("along", "square")} == {
        "along": (2, 1, 1),
        "square": (2, 1, 1),
    }
