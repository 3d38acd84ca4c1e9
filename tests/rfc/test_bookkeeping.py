"""Where a generation stands, what it decided, and when a new one begins."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rfc import RCS, Every, Listed, Record
from rfc.arguments import timestep_argument, timestep_value
from rfc.bookkeeping import clock_tensors
from rfc.record import Direction

EVERY = Every(interval=3, warmup=2)
RULE = RCS(tau=0.5, warmup=2)


def decided(schedule: Every | Listed | RCS, eps: list[float | None]) -> Record:
    generation, numbers = Record(), schedule.numbers()
    for value in eps:
        generation.decide(schedule, numbers, value, None)
    return generation


@pytest.mark.parametrize(
    ("last", "coming", "same"),
    [
        (500.0, 480.0, True),
        (500.0, 500.0, True),  # a sampler of second order calls twice at one timestep
        (500.0, 501.0, False),
        (0.0, 999.0, False),
        (None, 999.0, True),
        (500.0, None, True),
        (None, None, True),
        (500.0, math.nan, False),
    ],
)
def test_a_generation_continues_unless_the_timestep_moves_back_towards_the_noise(
    last: float | None, coming: float | None, same: bool
) -> None:
    generation = Record()
    generation.decide(EVERY, EVERY.numbers(), None, last)
    assert generation.continues(coming) is same


@pytest.mark.parametrize(
    ("timesteps", "lengths"),
    [
        ((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), [1, 6]),  # the second takes the first in
        ((0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4), [1, 9]),  # a sampler of second order
        ((0.5, 0.9, 0.8, 0.7), [1, 3]),  # a call to warm up, then a generation of one that falls
        ((0.9, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9, 0.5), [2, 2, 2, 2]),  # short generations of one that falls
    ],
)
def test_a_timestep_that_rises_is_told_from_short_generations(timesteps: tuple[float, ...], lengths: list[int]) -> None:
    direction, generations = Direction(), [Record()]
    for timestep in timesteps:
        if direction.ends(generations[-1], timestep):
            generations.append(generations[-1].successor(EVERY))
        generations[-1].decide(EVERY, EVERY.numbers(), None, timestep)
    assert [generation.step for generation in generations] == lengths


def test_a_context_hears_from_another_that_the_timestep_rises() -> None:
    direction, streams = Direction(), {"cond": [Record()], "uncond": [Record()]}
    for timestep in (0.0, 0.25, 0.5, 0.75, 0.0, 0.25):
        for generations in streams.values():
            if direction.ends(generations[-1], timestep):
                generations.append(generations[-1].successor(EVERY))
            generations[-1].decide(EVERY, EVERY.numbers(), None, timestep)
    for generations in streams.values():
        assert [generation.step for generation in generations][-2:] == [4, 2]
        assert generations[-2].phases[:2] == generations[-1].phases[:2]


def test_steps_in_doubt_keep_one_clock_where_the_next_step_is_full_anyway() -> None:
    for schedule, clock in ((EVERY, (1.0, 0.0, 1.0)), (Every(interval=3, warmup=1), (1.0, 0.0, 0.0))):
        first = Record()
        first.decide(schedule, schedule.numbers(), None, 0.0)
        second = first.successor(schedule)
        assert second.clock(schedule) == clock
        second.decide(schedule, schedule.numbers(), None, 0.1)
        assert second.clock(schedule) == (1.0, 0.0, 1.0)  # a generation of its own, as long as nothing else is known
        second.absorb()
        assert second.clock(schedule) == ((1.0, 1.0, 2.0) if schedule is EVERY else (1.0, 0.0, 1.0))


def test_a_fresh_generation_takes_any_timestep() -> None:
    assert Record().continues(123.0)


@given(st.sets(st.integers(1, 29)))
def test_the_clock_counts_from_the_last_full_step_the_gap_before_it_and_the_anchors(steps: set[int]) -> None:
    schedule = Listed(full_steps=[0, *steps])
    generation, numbers = Record(), schedule.numbers()
    for step in range(30):
        full = [i for i in schedule.full_steps if i < step]
        k = step - full[-1] if full else 1
        gap = full[-1] - full[-2] if len(full) > 1 else 0
        assert generation.clock(schedule) == (k, gap, len(full))
        generation.decide(schedule, numbers, None, None)
    assert generation.step == 30
    assert generation.nfc == len(schedule.full_steps) == generation.anchors


def test_the_clock_travels_as_three_float32_tensors_without_axes() -> None:
    clock = clock_tensors((3.0, 2.0, 1.0), torch.device("cpu"))
    assert all(value.shape == () and value.dtype == torch.float32 for value in clock[:3])
    assert clock.weights is None
    assert [float(clock.k), float(clock.N), float(clock.n)] == [3, 2, 1]


def test_before_the_first_anchor_there_is_no_eps() -> None:
    generation = decided(RULE, [0.3, 0.3])
    assert generation.eps == [None, 0.3]
    assert generation.totals == [None, pytest.approx(0.3)]


def test_an_unknown_eps_adds_nothing_and_is_recorded_as_unknown() -> None:
    generation = decided(RULE, [None, None, 0.4, None, 0.2])
    assert generation.phases == ["FULL", "FULL", "ESTIMATE", "ESTIMATE", "FULL"]
    assert generation.eps == [None, None, 0.4, None, 0.2]
    assert generation.totals == [None, None, pytest.approx(0.4), None, pytest.approx(0.6)]


def test_a_full_step_starts_the_accumulated_error_again() -> None:
    generation = decided(RULE, [None, 9.0, 0.3, 0.3, 0.3, 0.3])
    assert generation.phases == ["FULL", "FULL", "ESTIMATE", "FULL", "ESTIMATE", "FULL"]
    assert generation.totals[1:] == [9.0, *(pytest.approx(value) for value in (0.3, 0.6, 0.3, 0.6))]


def test_an_error_that_is_no_number_is_forgotten_at_its_full_step() -> None:
    generation = decided(RULE, [None, None, math.nan, 0.1])
    assert generation.phases == ["FULL", "FULL", "FULL", "ESTIMATE"]
    assert generation.totals[3] == pytest.approx(0.1)


def test_errors_add_up_in_float32_as_a_compiled_decision_adds_them() -> None:
    total = torch.zeros(())
    generation = decided(RCS(tau=math.inf, warmup=1), [None, *[0.1] * 20])
    for value in generation.totals[1:]:
        total = total + torch.tensor(0.1)
        assert value == float(total)


def test_a_schedule_without_data_records_no_eps() -> None:
    assert decided(EVERY, [None] * 4).eps == [None] * 4


@given(st.integers(0, 12), st.integers(1, 4), st.integers(1, 6))
def test_never_skipped_tells_a_schedule_that_could_but_did_not(steps: int, interval: int, warmup: int) -> None:
    every = decided(Every(interval=interval, warmup=warmup), [None] * steps)
    assert not every.never_skipped()
    generation = decided(RCS(tau=0.1, warmup=warmup), [1.0] * steps)
    assert generation.nfc == steps
    assert generation.never_skipped() == (steps > warmup)
    assert not decided(RCS(tau=0, warmup=warmup), [1.0] * steps).never_skipped()


def test_the_timestep_is_found_by_its_usual_names() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x

    class Both(nn.Module):
        def forward(self, t: Tensor, timestep: Tensor) -> Tensor:
            return t

    assert timestep_argument(Plain().forward) == "sigma"
    assert timestep_argument(Both().forward) == "timestep"
    assert timestep_argument(nn.ReLU().forward) is None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (torch.tensor([3, 7]), 7.0),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([[0.0, 9.0]]), 9.0),
        (torch.tensor([]), None),
        (4, 4.0),
        (0.25, 0.25),
        (None, None),
        ("999", None),
    ],
)
def test_the_timestep_of_a_call_is_the_largest_of_its_batch(value: object, number: float | None) -> None:
    assert timestep_value(value) == number
