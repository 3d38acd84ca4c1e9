"""Which step is full: published schedules, lists, and the accumulated error of RCS."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ROUND

from rfc import RCS, Clock, Every, Listed, Record, Schedule, Taylor
from rfc.state import SlotSpec

NAN, INF = math.nan, math.inf


def phases(schedule: Schedule, steps: int, eps: list[float] | None = None) -> list[str]:
    generation, numbers = Record(), schedule.numbers()
    return [generation.decide(schedule, numbers, eps[i] if eps else None, None) for i in range(steps)]


def full_steps(schedule: Schedule, steps: int, eps: list[float] | None = None) -> list[int]:
    return [i for i, phase in enumerate(phases(schedule, steps, eps)) if phase == "FULL"]


# --- every interval-th step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "interval", "nfc"),
    [
        *((2, interval, nfc) for interval, nfc in ((4, 14), (5, 11), (6, 10), (7, 8), (9, 7))),  # DiT-XL/2
        *((3, interval, nfc) for interval, nfc in ((4, 14), (5, 12), (6, 10), (9, 8))),  # FLUX.1-dev
        *((1, interval, nfc) for interval, nfc in ((5, 10), (6, 9), (8, 7))),  # HunyuanVideo
    ],
)
def test_fifty_steps_have_the_published_number_of_full_computations(warmup: int, interval: int, nfc: int) -> None:
    assert len(full_steps(Every(interval=interval, warmup=warmup), 50)) == nfc


def test_the_full_steps_of_dit_with_interval_four_are_the_published_ones() -> None:
    counted_down = [49 - step for step in full_steps(Every(interval=4, warmup=2), 50)]
    assert counted_down == [49, *range(48, -1, -4)]


def test_an_interval_of_one_makes_every_step_full() -> None:
    assert full_steps(Every(interval=1, warmup=1), 20) == list(range(20))


@given(st.integers(1, 9), st.integers(1, 9))
def test_after_the_warm_up_full_steps_are_an_interval_apart(interval: int, warmup: int) -> None:
    full = full_steps(Every(interval=interval, warmup=warmup), 40)
    assert full[:warmup] == list(range(warmup))
    assert {after - before for before, after in itertools.pairwise(full[warmup - 1 :])} == {interval}


# --- a list ----------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(1, 39)))
def test_exactly_the_listed_steps_are_full(steps: set[int]) -> None:
    assert full_steps(Listed(full_steps=[0, *steps]), 40) == [0, *sorted(steps)]


@given(st.sets(st.integers(1, 12)))
def test_the_warm_up_of_a_list_is_its_unbroken_beginning(steps: set[int]) -> None:
    schedule = Listed(full_steps=[0, *steps])
    assert full_steps(schedule, schedule.warmup + 1) == list(range(schedule.warmup))


def test_a_list_is_sorted_and_without_repetitions() -> None:
    assert Listed(full_steps=[5, 0, 2, 5]) == Listed(full_steps=(0, 2, 5)) == Listed(full_steps=iter([0, 5, 2]))  # type: ignore[arg-type]
    assert Listed(full_steps=range(3)).full_steps == (0, 1, 2)


@pytest.mark.parametrize("last", [7, 4095])
def test_steps_beyond_what_a_list_can_speak_of_are_not_full(last: int) -> None:
    schedule = Listed(full_steps=[0, last])
    for step in (4096.0, 5000.0):
        assert not schedule.full(schedule.numbers(), torch.tensor(step), torch.tensor(1.0), torch.tensor(0.0))


# --- relational cache scheduling -------------------------------------------------------------------------------------


def simulated(eps: list[float], tau: float, warmup: int, max_skip: int | None) -> list[int]:
    """Eq. 13 in plain Python: full when the errors since the last full step add up to more than tau."""
    full: list[int] = []
    total, skipped = np.float32(0), 0
    for step, error in enumerate(eps):
        if full:
            total = total + np.float32(error)
        within = total <= np.float32(tau)
        if step < warmup or not within or (max_skip is not None and skipped >= max_skip):
            full.append(step)
            total, skipped = np.float32(0), 0
        else:
            skipped += 1
    return full


errors = st.floats(0.0, 1.0, width=32) | st.sampled_from([0.0, NAN, INF])


@given(
    st.lists(errors, min_size=1, max_size=30),
    st.floats(0.0, 2.0) | st.just(INF),
    st.integers(1, 5),
    st.none() | st.integers(0, 6),
)
def test_rcs_decides_as_equation_13_does(eps: list[float], tau: float, warmup: int, max_skip: int | None) -> None:
    schedule = RCS(tau=tau, warmup=warmup, max_skip=max_skip)
    with np.errstate(invalid="ignore"):
        assert full_steps(schedule, len(eps), eps) == simulated(eps, tau, warmup, max_skip)


@given(st.lists(st.floats(0.0, 1.0, width=32, exclude_min=True), min_size=1, max_size=30), st.integers(1, 5))
def test_tau_of_zero_makes_every_step_full(eps: list[float], warmup: int) -> None:
    assert full_steps(RCS(tau=0, warmup=warmup), len(eps), eps) == list(range(len(eps)))


@given(st.lists(st.floats(0.0, 2.0**100, width=32) | st.just(INF), min_size=1, max_size=30), st.integers(1, 5))
def test_infinite_tau_makes_no_step_full_after_the_warm_up(eps: list[float], warmup: int) -> None:
    assert full_steps(RCS(tau=INF, warmup=warmup), len(eps), eps) == list(range(min(warmup, len(eps))))


@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=10, max_size=40), st.floats(0.0, 4.0), st.integers(0, 6))
def test_max_skip_caps_the_steps_skipped_in_a_row(eps: list[float], tau: float, most: int) -> None:
    row = "".join("x" if phase == "FULL" else "." for phase in phases(RCS(tau=tau, max_skip=most), len(eps), eps))
    assert max(len(run) for run in row.split("x")) <= most


@pytest.mark.parametrize("tau", [0.1, INF])
def test_an_error_that_is_not_a_number_makes_its_step_full_and_no_other(tau: float) -> None:
    assert full_steps(RCS(tau=tau, warmup=1), 6, [0.0, 0.0, NAN, 0.0, 0.0, 0.0]) == [0, 2]


def watched(schedule: RCS, full: dict[int, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """What is kept of the inputs of these full steps, from a state of an earlier generation on, and the last of them."""
    before, gap = 0, 0
    first = next(iter(full.values()))
    slots = schedule.slots({"I": SlotSpec(tuple(first.shape), first.dtype)})
    state = {name: torch.full(spec.shape, NAN, dtype=spec.dtype) for name, spec in slots.items()}
    for n, (step, I) in enumerate(full.items()):
        state = schedule.refresh(state, {"I": I}, Clock.at(step - before if n else 1, gap, n))
        gap, before = step - before, step
    return state, before


@pytest.mark.parametrize("over", ["mean", "max"])
@pytest.mark.parametrize("axes", [(5, 3), (2, 4, 3)])
@pytest.mark.parametrize("order", [1, 2])
def test_eps_is_the_relative_l1_error_of_the_taylor_forecast_of_each_sample(over: Any, axes: tuple[int, ...], order: int) -> None:
    draw = torch.Generator().manual_seed(0)
    full = {step: torch.randn(3, *axes, generator=draw) for step in (0, 1, 4)}
    I, k = torch.randn(3, *axes, generator=draw), 2
    schedule = RCS(tau=1, order=order, over=over)
    state, _ = watched(schedule, full)
    a, b, c = (value.double() for value in full.values())
    f1, f2 = (c - b) / 3, ((c - b) / 3 - (b - a)) / 3
    forecast = c + k * f1 + (k**2 / 2 * f2 if order == 2 else 0)
    each = [float((I[i] - forecast[i]).abs().sum() / I[i].double().abs().sum()) for i in range(3)]
    eps = schedule.error({"I": I}, state, Clock.at(k, 3, 3))
    assert eps.shape == ()
    assert eps.dtype == torch.float32
    assert float(eps) == pytest.approx(sum(each) / 3 if over == "mean" else max(each), rel=ROUND)


def test_eps_of_an_input_that_keeps_its_pace_is_zero() -> None:
    schedule = RCS(tau=1)
    state, _ = watched(schedule, {0: torch.full((1, 2, 2), 4.0), 2: torch.full((1, 2, 2), 6.0)})
    assert schedule.error({"I": torch.full((1, 2, 2), 9.0)}, state, Clock.at(3, 2, 2)) == 0


def test_eps_is_summed_in_float32_where_float16_would_overflow() -> None:
    one = torch.ones(1, 64, 64, dtype=torch.float16)
    schedule = RCS(tau=1)
    state, _ = watched(schedule, {0: 100 * one, 1: 100 * one})
    assert float(schedule.error({"I": 200 * one}, state, Clock.at(1, 1, 2))) == 0.5


@pytest.mark.parametrize("over", ["mean", "max"])
def test_one_sample_of_zeros_makes_eps_no_number_and_the_step_full(over: Any) -> None:
    schedule = RCS(tau=INF, warmup=1, over=over)
    I = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    state, _ = watched(schedule, {0: I})
    eps = float(schedule.error({"I": I}, state, Clock.at(1, 0, 1)))
    assert math.isnan(eps)
    assert full_steps(schedule, 2, [0.0, eps]) == [0, 1]


def test_rcs_watches_the_input_and_keeps_what_its_forecast_needs_after_full_steps() -> None:
    schedule, I = RCS(tau=1, order=2), SlotSpec((2, 3, 4), torch.bfloat16)
    assert schedule.watches == ("I",)
    assert schedule.remembers == "full steps"
    assert schedule.forecaster == Taylor(order=2)
    assert schedule.slots({"I": I}) == {"O": I, "dO1": I, "dO2": I}


@pytest.mark.parametrize("schedule", [Every(interval=3), Listed(full_steps=[0])])
def test_a_schedule_without_data_watches_nothing_keeps_nothing_and_has_no_error(schedule: Schedule) -> None:
    assert schedule.watches == ()
    assert schedule.slots({}) == schedule.refresh({}, {}, Clock.at(1, 1, 1)) == {}
    with pytest.raises(NotImplementedError, match=rf"^{type(schedule).__name__} watches nothing$"):
        schedule.error({"I": torch.ones(1, 2)}, {}, Clock.at(1, 1, 1))


# --- rules -----------------------------------------------------------------------------------------------------------

PAIRS: list[tuple[Schedule, Schedule]] = [
    (Every(interval=3), Every(interval=7, warmup=5)),
    (Listed(full_steps=[0]), Listed(full_steps=range(100))),
    (RCS(tau=0.1), RCS(tau=INF, warmup=1, max_skip=4)),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_thresholds_are_tensors_whose_shape_depends_on_the_kind_of_schedule_alone(one: Schedule, other: Schedule) -> None:
    shapes = [{name: (value.shape, value.dtype) for name, value in schedule.numbers().items()} for schedule in (one, other)]
    assert shapes[0] == shapes[1]
    assert all(dtype == torch.float32 for _, dtype in shapes[0].values())


@pytest.mark.parametrize("schedule", [schedule for pair in PAIRS for schedule in pair])
def test_a_rule_is_a_truth_value_of_tensors_without_axes(schedule: Schedule) -> None:
    decision = schedule.full(schedule.numbers(), torch.tensor(3.0), torch.tensor(2.0), torch.tensor(0.5))
    assert decision.shape == ()
    assert decision.dtype == torch.bool


@given(
    st.builds(Every, interval=st.integers(1, 4), warmup=st.integers(1, 4))
    | st.builds(Listed, full_steps=st.sets(st.integers(1, 5)).map(lambda steps: [0, *steps]))
    | st.builds(RCS, tau=st.just(INF) | st.just(0.5), warmup=st.integers(1, 4), max_skip=st.none() | st.integers(0, 3)),
    st.integers(1, 8),
)
def test_a_schedule_knows_whether_it_can_skip(schedule: Schedule, steps: int) -> None:
    assert schedule.can_skip(steps) == ("ESTIMATE" in phases(schedule, steps, [0.0] * steps))


@pytest.mark.parametrize("schedule", [schedule for pair in PAIRS for schedule in pair])
def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    assert schedule == copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule))
    with pytest.raises(AttributeError):
        schedule.warmup = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Every(interval=0), r"^Every: interval must be an integer of at least 1, got 0$"),
        (lambda: Every(interval=2.5), r"^Every: interval must be an integer of at least 1, got 2\.5$"),
        (lambda: Every(interval=True), r"^Every: interval must be an integer of at least 1, got True$"),
        (lambda: Every(interval=3, warmup=0), r"^Every: warmup must be an integer of at least 1, got 0$"),
        (lambda: Listed(full_steps=[]), r"^Listed: full_steps must contain 0, got \[\]; the first step has nothing to reuse$"),
        (lambda: Listed(full_steps=[1, 2]), r"^Listed: full_steps must contain 0, got \[1, 2\]; the first step has nothing to reuse$"),
        (lambda: Listed(full_steps=[0, -1]), r"^Listed: full_steps: each step must be an integer of at least 0, got -1$"),
        (lambda: Listed(full_steps=[0, 1.5]), r"^Listed: full_steps: each step must be an integer of at least 0, got 1\.5$"),
        (lambda: Listed(full_steps=[0, 4096]), r"^Listed: full_steps must be below 4096, got 4096$"),
        (lambda: RCS(tau=-0.1), r"^RCS: tau must be a number >= 0 \(inf: never full after warm-up\), got -0\.1$"),
        (lambda: RCS(tau=NAN), r"^RCS: tau must be a number >= 0 .*, got nan$"),
        (lambda: RCS(tau="0.1"), r"^RCS: tau must be a number >= 0 .*, got '0\.1'$"),
        (lambda: RCS(tau=True), r"^RCS: tau must be a number >= 0 .*, got True$"),
        (lambda: RCS(tau=1, warmup=0), r"^RCS: warmup must be an integer of at least 1, got 0$"),
        (lambda: RCS(tau=1, max_skip=-1), r"^RCS: max_skip must be an integer of at least 0, got -1$"),
        (lambda: RCS(tau=1, order=0), r"^RCS: order must be an integer of at least 1, got 0$"),
        (lambda: RCS(tau=1, over="sum"), r"^RCS: over must be mean or max, got 'sum'$"),
    ],
)
def test_a_schedule_refuses_what_it_cannot_mean_and_says_what_it_wanted(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
