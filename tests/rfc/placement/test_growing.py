"""Spectrum's growing window: against its released loop."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rfc
from rfc import GrowingWindow, Spectrum
from rfc.schedules.base import clock_at


def released(num_steps: int, warmup: int, window: float, growth: float) -> list[int]:
    """The released loop, which counts the steps that it skipped in a row."""
    full, skipped = [], 0
    for step in range(num_steps):
        is_full = True
        if step >= warmup:
            is_full = (skipped + 1) % math.floor(window) == 0
            if is_full:
                window = round(window + growth, 3)
        skipped = 0 if is_full else skipped + 1
        full += [step] * is_full
    return full


@given(
    num_steps=st.integers(1, 80),
    warmup=st.integers(1, 8),
    window=st.sampled_from([1.0, 2.0, 2.5, 4.0]),
    growth=st.sampled_from([0.0, 0.25, 0.75, 1.1, 3.0]),
)
def test_full_steps_are_those_of_the_released_loop(num_steps: int, warmup: int, window: float, growth: float) -> None:
    schedule = Spectrum(num_steps=num_steps, warmup=warmup, window=window, growth=growth).schedule
    assert list(schedule.full_steps) == released(num_steps, warmup, window, growth)  # type: ignore[attr-defined]


def test_the_published_settings_have_14_and_10_full_steps_of_50() -> None:
    assert (Spectrum().schedule.nfc, Spectrum(growth=3).schedule.nfc) == (14, 10)
    assert Spectrum().with_nfc(14) == Spectrum()


@given(st.integers(2, 56).flatmap(lambda length: st.tuples(st.just(length), st.integers(2, length))))
def test_a_number_of_full_steps_is_met_by_another_growth(numbers: tuple[int, int]) -> None:
    num_steps, nfc = numbers
    assert len(GrowingWindow(num_steps=num_steps).with_nfc(nfc).full_steps) == nfc


def test_a_share_of_the_steps_and_the_default_are_taken_too() -> None:
    assert GrowingWindow(growth=2).with_nfc(0.2).nfc == 10
    assert GrowingWindow(growth=2).with_nfc(None) == GrowingWindow()
    assert GrowingWindow(leading=5).bound(4) == GrowingWindow(num_steps=4, leading=4)


def test_its_clock_runs_through_a_generation_in_a_time_of_1() -> None:
    schedule = GrowingWindow(num_steps=20)
    clock = clock_at(schedule, schedule.numbers(), *torch.tensor([11.0, 3.0, 2.0, 7.0]).unbind())
    assert [float(value) for value in clock[:3]] == [pytest.approx(3 / 20), pytest.approx(2 / 20), 7]
    assert schedule.in_graph == GrowingWindow(num_steps=50, growth=3).in_graph
    assert schedule.in_graph != rfc.Placed(full_steps=[0], num_steps=20).in_graph


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GrowingWindow(num_steps=0), r"^GrowingWindow: num_steps must be an integer of at least 1, got 0$"),
        (lambda: Spectrum(warmup=0), r"^GrowingWindow: leading must be an integer of at least 1, got 0$"),
        (lambda: Spectrum(window=0.5), r"^GrowingWindow: window must be a number from 1 to 4096, got 0\.5$"),
        (lambda: Spectrum(growth=-1), r"^GrowingWindow: growth must be a number from 0 to 4096, got -1$"),
        (lambda: Spectrum().with_nfc(1), r"^GrowingWindow: no growth leaves 1 full steps of 50; choose another number of at least 2$"),
        (lambda: Spectrum().with_nfc(51), r"^GrowingWindow: nfc must be at most num_steps \(50\), got 51$"),
        (lambda: Spectrum().with_nfc(1.5), r"^GrowingWindow: nfc must be a number of full steps, or a share"),
    ],
)
def test_bad_settings_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
