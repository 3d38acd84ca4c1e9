"""Methods: an estimator, a schedule, and a check of both when made."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfc
from rfc import FORA, RCS, RFC, RFE, Every, FullCompute, Method, Projective, Reuse, Taylor, TaylorSeer
from rfc.method import programs_of

METHODS: list[Method] = [FullCompute(), FORA(), TaylorSeer(), RFC(), Method(estimator=Projective(), schedule=RCS(tau=0.2))]


@pytest.mark.parametrize(
    ("method", "estimator", "schedule"),
    [
        (FullCompute(), Reuse(), Every(interval=1, warmup=1)),
        (FORA(interval=3, warmup=4), Reuse(), Every(interval=3, warmup=4)),
        (TaylorSeer(interval=6, order=1, warmup=3), Taylor(order=1), Every(interval=6, warmup=3)),
        (RFC(tau=0.25, order=2, warmup=1), RFE(order=2, norm="sample"), RCS(tau=0.25, warmup=1, order=2)),
        (Method(estimator=Projective(order=3), schedule=Every(interval=2)), Projective(order=3), Every(interval=2)),
    ],
)
def test_a_method_is_an_estimator_and_a_schedule(method: Method, estimator: Any, schedule: Any) -> None:
    assert (method.estimator, method.schedule) == (estimator, schedule)


def test_defaults_are_the_published_settings() -> None:
    assert FORA() == FORA(interval=4, warmup=2)
    assert TaylorSeer() == TaylorSeer(interval=4, order=2, warmup=2)
    assert RFC() == RFC(tau=0.1, order=1, warmup=3)


PUBLISHED: list[Method] = [
    *METHODS,
    rfc.TaylorSeerLite(order=1),
    rfc.HiCache(sigma=0.3),
    rfc.DeltaDiT(first=2, last=5),
    rfc.FoCa(interval=5),
    rfc.NewtonRCS(),
    rfc.SpeCa(num_steps=28),
    rfc.TeaCache(coefficients=[2.0, 0.5], num_steps=28),
    rfc.FirstBlockCache(blocks=8, tail=1),
    rfc.DiCache(depth=2),
    rfc.EasyCache(num_steps=28),
    rfc.SeaCache(num_steps=28, grid=[4, 8]),
    rfc.Spectrum(growth=3, weight=0.5),
    rfc.MagCache(ratios=[1.0, 1.2, 0.9]),
    rfc.ToCa(interval=3, grid=(4, 8)),
    rfc.DuCa(parts=2),
    rfc.DisCa(predictor=None, full_steps=(0, 2)),
    rfc.Chebyshev(nfc=5, num_steps=20),
]
every_method = pytest.mark.parametrize("method", PUBLISHED, ids=lambda method: method.name)


@every_method
def test_a_method_is_a_value_that_can_be_copied_pickled_and_hashed(method: Method) -> None:
    assert method == copy.deepcopy(method) == pickle.loads(pickle.dumps(method))
    assert hash(method) == hash(copy.deepcopy(method))
    with pytest.raises(AttributeError):
        method.name = "other"  # type: ignore[misc]


@every_method
def test_the_repr_of_a_method_is_the_call_that_makes_it(method: Method) -> None:
    assert eval(repr(method), vars(rfc)) == method


@every_method
def test_an_exercised_method_runs_on_the_same_programs_and_comes_to_every_phase(method: Method) -> None:
    exercised = method.exercised()
    assert programs_of(exercised) == programs_of(method)
    generation, numbers = rfc.Record(), exercised.schedule.numbers()
    phases = [generation.decide(exercised.schedule, numbers, 0.0, None) for _ in range(16)]
    assert {*phases} == {*method.schedule.branches}
    skipped = [step for step, phase in enumerate(phases) if phase != "FULL"]
    assert "FULL" in phases[skipped[0] : skipped[-1]]


@every_method
@given(threshold=st.floats(0, 100))
def test_a_threshold_is_changed_where_there_is_one_and_refused_by_name_where_there_is_none(method: Method, threshold: float) -> None:
    schedule = method.schedule
    if schedule.threshold is None:
        with pytest.raises(ValueError, match=f"^{type(schedule).__name__} decides without a threshold$"):
            method.with_threshold(threshold)
    else:
        changed = method.with_threshold(threshold)
        assert changed.schedule.threshold == threshold
        assert changed.with_threshold(schedule.threshold) == method
        assert programs_of(changed) == programs_of(method)


def test_a_number_of_full_steps_is_changed_where_the_schedule_places_that_many() -> None:
    method = rfc.Chebyshev(nfc=5, num_steps=20)
    assert (method.schedule.nfc, method.with_nfc(7).schedule.nfc, method.with_nfc(None).schedule.nfc) == (5, 7, 6)
    assert method.with_nfc(7) == rfc.Chebyshev(nfc=7, num_steps=20)
    assert programs_of(method.with_nfc(7)) == programs_of(method)
    for other in (FORA(), rfc.MagCache(ratios=[1.0, 0.9])):
        assert other.schedule.nfc is None
        with pytest.raises(ValueError, match=f"^{type(other.schedule).__name__} does not place a number of full steps$"):
            other.with_nfc(3)


def test_a_method_is_shown_by_its_name_and_settings() -> None:
    assert str(RFC(tau=0.2)) == "RFC(tau=0.2)"
    assert str(RFC(tau=0.2, order=2)) == "RFC(tau=0.2, order=2)"
    assert str(TaylorSeer(order=3)) == "TaylorSeer(interval=4, order=3)"
    assert str(rfc.LogSNR(lambdas=(-1.0, 0.0, 1.0), nfc=2)) == "LogSNR(num_steps=3, nfc=2, damping=0.5)"
    assert str(rfc.LogSNR(lambdas=(-1.0, 0.0, 1.0), nfc=2, is_flow=True)) == "LogSNR(num_steps=3, nfc=2)"
    assert str(rfc.ToCa()) == "ToCa(...)"
    assert str(Method(estimator=Reuse(), schedule=Every(interval=2))) == "Method(Every(interval=2), Reuse())"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FORA(interval=0), r"^Every: interval must be an integer of at least 1, got 0$"),
        (lambda: TaylorSeer(order=0), r"^Taylor: order must be an integer of at least 1, got 0$"),
        (lambda: TaylorSeer(warmup=-1), r"^Every: warmup must be an integer of at least 1, got -1$"),
        (lambda: RFC(order=3), r"^RFE: order must be an integer from 1 to 2, got 3$"),
        (lambda: RFC(tau=-1), r"^RCS: tau must be a number >= 0"),
    ],
)
def test_a_method_is_checked_when_it_is_made(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_a_method_of_other_things_than_an_estimator_and_a_schedule_says_what_it_wanted() -> None:
    with pytest.raises(TypeError, match=r"^Method: estimator must be an rfc Estimator such as rfc\.Taylor\(order=1\), got 'taylor'$"):
        Method(estimator="taylor", schedule=Every(interval=2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Method: schedule must be an rfc Schedule such as rfc\.Every\(interval=4\), got 4$"):
        Method(estimator=Reuse(), schedule=4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Method: estimator must be an rfc Estimator .*, got <class 'rfc\.estimators\.relational\.RFE'>$"):
        Method(estimator=RFE, schedule=Every(interval=2))  # type: ignore[arg-type]
