"""Full steps placed beforehand: as many as were asked for, both ends among them, denser towards the ends."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rfc
from rfc.encoding import EncodingError, decode_method, encode_method
from rfc.placement.chebyshev import placed_steps
from rfc.state import Clock, spec_of, zeros

LENGTHS = st.integers(1, 200).flatmap(lambda steps: st.tuples(st.integers(1, steps), st.just(steps)))


@given(LENGTHS, st.floats(0, 1))
def test_there_are_as_many_as_asked_for_and_they_rise_from_the_first_step_to_the_last(counts: tuple[int, int], clustering: float) -> None:
    nfc, steps = counts
    placed = placed_steps(nfc, steps, clustering)
    assert len(placed) == nfc
    assert placed[0] == 0
    assert nfc == 1 or placed[-1] == steps - 1
    assert all(a < b for a, b in itertools.pairwise(placed))


@pytest.mark.parametrize("nfc", [5, 8, 14, 26])
def test_the_ends_of_the_scale_are_equal_gaps_and_chebyshev_lobatto_points(nfc: int) -> None:
    last = 100 * (nfc - 1)
    assert placed_steps(nfc, last + 1, 0.0) == tuple(range(0, last + 1, 100))
    assert placed_steps(nfc, last + 1, 1.0) == tuple(round(last * (1 - math.cos(math.pi * i / (nfc - 1))) / 2) for i in range(nfc))


def test_gaps_shrink_towards_both_ends() -> None:
    gaps = [b - a for a, b in itertools.pairwise(placed_steps(8, 701, 0.6))]
    assert gaps == gaps[::-1]
    assert gaps[0] < gaps[1] < gaps[2] < gaps[3]


@given(LENGTHS, st.floats(0, 1), st.floats(0.8, 1.25))
def test_gaps_grow_and_then_shrink_and_rounding_puts_no_long_one_among_short_ones(
    counts: tuple[int, int], clustering: float, lean: float
) -> None:
    gaps = [b - a for a, b in itertools.pairwise(placed_steps(*counts, clustering, lean))]
    turns = [a < b for a, b in itertools.pairwise(gaps) if a != b]
    assert turns == sorted(turns, reverse=True)  # True: it grows


@given(LENGTHS)
def test_the_schedule_makes_just_these_steps_full(counts: tuple[int, int]) -> None:
    nfc, steps = counts
    method = rfc.Chebyshev(nfc=nfc, num_steps=steps)
    generation, numbers = rfc.Record(), method.schedule.numbers()
    phases = [generation.decide(method.schedule, numbers, None, None) for _ in range(steps)]
    assert tuple(i for i, phase in enumerate(phases) if phase == "FULL") == placed_steps(nfc, steps, 0.8)


@given(LENGTHS.filter(lambda counts: counts[0] > 1))
def test_the_clock_runs_evenly_from_each_full_step_to_the_next_in_one_interval(counts: tuple[int, int]) -> None:
    nfc, steps = counts
    schedule = rfc.Chebyshev(nfc=nfc, num_steps=steps).schedule
    generation, numbers = rfc.Record(), schedule.numbers()
    for step in range(steps):
        k, N, n = generation.clock(schedule)
        before = [full for full in schedule.full_steps if full < step]
        if before:
            coming = min(full for full in schedule.full_steps if full >= step)
            assert k == pytest.approx((step - before[-1]) / (coming - before[-1]), abs=1e-5)
        assert (N, n) == (1.0 if len(before) > 1 else 0.0, len(before))
        generation.decide(schedule, numbers, None, None)


@pytest.mark.parametrize(("steps", "at", "k"), [([0, 1, 4], 9, 5 / 3), ([0], 9, 9.0), ([0, 2], 3, 0.5)])
def test_after_the_last_full_step_intervals_are_as_long_as_the_last_one_was(steps: list[int], at: int, k: float) -> None:
    schedule = rfc.Placed(full_steps=steps, num_steps=10, unit="interval")
    generation, numbers = rfc.Record(), schedule.numbers()
    for _ in range(at):
        generation.decide(schedule, numbers, None, None)
    assert generation.clock(schedule)[0] == pytest.approx(k)


def test_a_forecast_is_exact_where_the_output_is_a_polynomial_of_the_time_in_intervals() -> None:
    method = rfc.Chebyshev(nfc=6, num_steps=40, damping=1.0)
    generation, numbers = rfc.Record(), method.schedule.numbers()
    I, state = torch.zeros(1, 1, 1), None
    for step in range(40):
        time = float(method.schedule.time(numbers, torch.tensor(float(step))))
        O = torch.full((1, 1, 1), 3 * time**2 - 2 * time + 1)
        clock = Clock.at(*generation.clock(method.schedule))
        if generation.decide(method.schedule, numbers, None, None) == "FULL":
            state = method.estimator.refresh(state or zeros(method.estimator.slots(spec_of(I), spec_of(O)), O.device), I, O, clock)
        elif clock.n >= 3:
            assert state is not None
            torch.testing.assert_close(method.estimator.estimate(state, I, clock), O, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("steps", "full"), [(50, 14), (28, 8), (20, 6), (4, 2), (1, 1)])
def test_without_a_number_28_percent_are_full(steps: int, full: int) -> None:
    assert rfc.Chebyshev(num_steps=steps).schedule.numbers()["table"].sum() == full


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nfc": 51}, r"nfc must be at most num_steps \(50\), got 51"),
        ({"nfc": 0}, "nfc must be an integer of at least 1, got 0"),
        ({"nfc": 7.5}, "nfc must be a number of full steps, or a share of the steps above 0 and below 1, got 7.5"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 5000}, "num_steps must be an integer from 1 to 4096, got 5000"),
        ({"clustering": 1.5}, r"clustering must be from 0 \(equal gaps\) to 1 \(Chebyshev-Lobatto points\), got 1.5"),
        ({"clustering": math.nan}, "clustering must be from 0"),
        ({"order": 9}, "order must be an integer from 1 to 4"),
        ({"damping": -0.1}, r"damping must be from 0 \(a line\) to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_it_is_made(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rfc.Chebyshev(**settings)  # type: ignore[arg-type]


def test_a_list_beyond_the_generation_it_is_for_is_refused() -> None:
    with pytest.raises(ValueError, match="full_steps must be below num_steps=20, got 20"):
        rfc.Placed(full_steps=[0, 20], num_steps=20)


def test_it_is_kept_in_json_by_its_settings() -> None:
    method = rfc.Chebyshev(nfc=6, num_steps=20)
    encoded = encode_method(method)
    assert encoded["schedule"] == {"type": "ChebyshevPlaced", "num_steps": 20, "count": 6, "clustering": 0.8}
    assert decode_method(encoded) == method
    assert decode_method(encoded).with_nfc(5) == rfc.Chebyshev(nfc=5, num_steps=20)
    encoded["schedule"]["count"] = 21
    with pytest.raises(EncodingError, match=r"method\.schedule: Chebyshev: nfc must be at most num_steps \(20\), got 21"):
        decode_method(encoded)


def test_a_list_is_kept_in_json_with_the_length_it_is_for() -> None:
    method = rfc.Method(estimator=rfc.Newton(), schedule=rfc.Placed(full_steps=(0, 5), num_steps=8, unit="interval"))
    encoded = encode_method(method)
    assert encoded["schedule"] == {"type": "Placed", "full_steps": [0, 5], "num_steps": 8, "unit": "interval", "times": None}
    assert decode_method(encoded) == method
    with pytest.raises(EncodingError, match=r"method\.schedule: Placed: unit must be step or interval or generation, got 'second'"):
        decode_method(encoded | {"schedule": encoded["schedule"] | {"unit": "second"}})
    encoded["schedule"]["num_steps"] = 3
    with pytest.raises(EncodingError, match=r"method\.schedule: Placed: full_steps must be below num_steps=3"):
        decode_method(encoded)


@given(LENGTHS, st.integers(1, 100))
def test_bound_to_another_length_it_is_the_method_of_that_length(counts: tuple[int, int], other: int) -> None:
    assert rfc.Chebyshev(num_steps=counts[1]).schedule.bound(other) == rfc.Chebyshev(num_steps=other).schedule
