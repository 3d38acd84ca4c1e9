"""Methods: an estimator, a schedule, and a check of both when made."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from rfc import FORA, RCS, RFC, RFE, Every, FullCompute, Method, Projective, Reuse, Taylor, TaylorSeer

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


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_method_is_a_value_that_can_be_copied_pickled_and_hashed(method: Method) -> None:
    assert isinstance(method, Method)
    assert method == copy.deepcopy(method) == pickle.loads(pickle.dumps(method))
    assert hash(method) == hash(copy.deepcopy(method))
    with pytest.raises(AttributeError):
        method.tau = 1  # type: ignore[attr-defined]


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
