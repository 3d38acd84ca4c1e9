"""SpeCa's schedule against its released loop, step by step."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rfc import Record, SpeCa, Taylor, Verified

INF = math.inf


def decided(schedule: Verified, errors: list[float]) -> Record:
    """A generation whose step i is found to be off by errors[i], where it is verified."""
    generation, numbers = Record(), schedule.numbers()
    for step, error in enumerate(errors):
        if generation.decide(schedule, numbers, None, 1.0 - step / 1000) == "VERIFY":
            generation.learn(schedule, error)
    return generation


def letters(generation: Record) -> str:
    return "".join(phase[0] for phase in generation.phases)


def released(schedule: Verified, errors: list[float]) -> tuple[str, float]:
    """The released loop: F full, E drafted, V drafted and verified; and how close an error came to its threshold."""
    done, closest = "", INF
    counter, error, was_full = 0, None, False
    for step, found in enumerate(errors):
        if step == 0:
            done, was_full = "F", True
            continue
        if was_full:
            counter, check, error, was_full = 1, False, None, False
        else:
            progress = step / schedule.num_steps
            threshold = max(schedule.base * schedule.decay**progress, schedule.floor)
            check = counter >= schedule.min_drafts
            if check and error is not None:
                closest = min(closest, abs(error - threshold) / max(threshold, 1e-9))
            is_bad = check and error is not None and error > threshold
            if step < schedule.enhanced or counter >= schedule.max_drafts or is_bad:
                done, was_full = done + "F", True
                continue
            counter += 1
        if check:
            error = found
        done += "V" if check else "E"
    return done, closest


schedules = st.builds(
    Verified,
    base=st.floats(0, 2),
    decay=st.floats(0.001, 1),
    floor=st.floats(0, 0.5),
    min_drafts=st.integers(1, 5),
    max_drafts=st.integers(1, 8),
    enhanced=st.integers(0, 6),
    num_steps=st.integers(5, 60),
)


@given(schedules, st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_steps_are_decided_as_in_the_released_loop(schedule: Verified, errors: list[float]) -> None:
    wanted, closest = released(schedule, errors)
    assume(closest > 1e-5)
    assert letters(decided(schedule, errors)) == wanted


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        # DiT, sample.py: 50 steps, drafts good: one verified draft after another, five in a row
        ({}, "FEFEEVVVFEEVVVFEEVVVFEEVVVFEEVVVFEEVVVFEEVVVFEEVVV"),
        # DiT, sample_ddp.py: at least three before the first check, eight in a row
        ({"min_drafts": 3, "max_drafts": 8}, "FEFEEEVVVVVFEEEVVVVVFEEEVVVVVFEEEVVVVVFEEEVVVVVFEE"),
        # HunyuanVideo
        ({"min_drafts": 4, "max_drafts": 12, "enhanced": 1}, "FEEEEVVVVVVVVFEEEEVVVVVVVVFEEEEVVVVVVVVFEEEEVVVVVV"),
    ],
)
def test_as_long_as_every_draft_is_good_the_largest_number_of_drafts_is_made(settings: dict[str, int], wanted: str) -> None:
    assert letters(decided(Verified(**settings), [0.0] * 50)) == wanted


def test_among_the_first_steps_full_ones_and_drafts_alternate() -> None:
    assert letters(decided(Verified(enhanced=9), [0.0] * 14)) == "FEFEFEFEFEEVVV"
    assert letters(decided(Verified(enhanced=0), [0.0] * 8)) == "FEEVVVFE"


def test_a_bad_draft_is_kept_and_the_next_step_is_full() -> None:
    errors = [0.0] * 12
    errors[5] = 1.0  # of the first verified draft
    assert letters(decided(Verified(), errors)) == "FEFEEVFEEVVV"


def test_an_error_of_before_the_last_full_step_is_forgotten() -> None:
    schedule = Verified(min_drafts=1)
    assert letters(decided(schedule, [1.0] * 9)) == "FEFEVFEVF"  # the first draft after a full step has nothing to answer for


def test_an_error_that_is_no_number_makes_the_next_step_full() -> None:
    assert letters(decided(Verified(), [math.nan] * 9)) == "FEFEEVFEE"


def test_the_threshold_decays_with_the_steps_and_stops_at_the_floor() -> None:
    # 0.1 * 0.01 ** (t / 50) falls below 0.05 at t = 7.5
    assert letters(decided(Verified(), [0.05] * 20)) == "FEFEEVVVFEEVFEEVFEEV"
    assert letters(decided(Verified(floor=0.06), [0.05] * 20)) == "FEFEEVVVFEEVVVFEEVVV"
    assert letters(decided(Verified(num_steps=500), [0.05] * 20)) == "FEFEEVVVFEEVVVFEEVVV"  # the same step, earlier in its generation


def test_every_error_is_on_record_with_the_step_that_was_verified() -> None:
    generation = decided(Verified(), [step / 1000 for step in range(12)])
    for step, phase in enumerate(generation.phases):
        assert generation.eps[step] == (step / 1000 if phase == "VERIFY" else None)


def test_the_phases_are_full_estimate_and_verify_and_nothing_is_watched_before_a_step() -> None:
    schedule = Verified()
    assert schedule.branches == ("FULL", "ESTIMATE", "VERIFY")
    assert schedule.watches == ()
    assert schedule.is_lagged
    assert not schedule.accumulates
    assert schedule.warmup == 1


@given(schedules, st.integers(1, 4))
def test_a_schedule_knows_whether_it_can_skip(schedule: Verified, steps: int) -> None:
    assert schedule.can_skip(steps) == (set(letters(decided(schedule, [0.0] * steps))) != {"F"})


@given(schedules, schedules)
def test_settings_are_tensors_without_axes_and_no_part_of_the_programs(one: Verified, other: Verified) -> None:
    assert one.in_graph == other.in_graph
    assert one.numbers().keys() == other.numbers().keys()
    assert all(value.shape == () and value.dtype == torch.float32 for value in one.numbers().values())
    assert one == copy.deepcopy(one) == pickle.loads(pickle.dumps(one))


def test_speca_is_a_taylor_draft_with_this_schedule_and_its_defaults_are_those_of_dit() -> None:
    assert SpeCa().estimator == Taylor(order=4)
    assert SpeCa().schedule == Verified(base=0.1, decay=0.01, floor=0.01, min_drafts=2, max_drafts=5, enhanced=3, num_steps=50)
    other = SpeCa(base=7.0, decay=0.3, floor=0.1, min_drafts=2, max_drafts=8, order=2, enhanced=3, num_steps=28)  # FLUX
    assert other.schedule == Verified(base=7.0, decay=0.3, floor=0.1, min_drafts=2, max_drafts=8, enhanced=3, num_steps=28)
    assert other.estimator == Taylor(order=2)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Verified(min_drafts=0), r"^Verified: min_drafts must be an integer of at least 1, got 0$"),
        (lambda: Verified(max_drafts=2.0), r"^Verified: max_drafts must be an integer of at least 1, got 2\.0$"),
        (lambda: Verified(enhanced=-1), r"^Verified: enhanced must be an integer of at least 0, got -1$"),
        (lambda: Verified(num_steps=0), r"^Verified: num_steps must be an integer of at least 1, got 0$"),
        (lambda: Verified(base=-0.1), r"^Verified: base must be a number >= 0, got -0\.1$"),
        (lambda: Verified(decay=math.nan), r"^Verified: decay must be a number >= 0, got nan$"),
        (lambda: Verified(floor="0"), r"^Verified: floor must be a number >= 0, got '0'$"),
        (lambda: Verified(base=True), r"^Verified: base must be a number >= 0, got True$"),
        (lambda: SpeCa(order=0), r"^Taylor: order must be an integer of at least 1, got 0$"),
        (lambda: SpeCa(max_drafts=0), r"^Verified: max_drafts must be an integer of at least 1, got 0$"),
    ],
)
def test_a_schedule_refuses_what_it_cannot_mean_and_says_what_it_wanted(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
