"""The soak: failures end as they were told to, nothing of them stays, and a wrong run is found."""

import warnings
from typing import Any

import pytest
import torch
from small_digits import first_blocks

import rfc
import rfc_fx
from benchmarks.soak.__main__ import Soak, soak
from benchmarks.soak.requests import FAILURES, Request, drawn, outcome
from benchmarks.soak.table import markdown


@pytest.fixture(scope="module")
def model() -> Any:
    return rfc_fx.transform(first_blocks(1)[0], rfc.TaylorSeer(interval=3, order=1))


REFERENCE = Request(model="m", sampler="DDIM", steps=6, batch=1, size=8, seed=7)


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_ends_as_it_was_told_to_and_leaves_nothing(failure: Any, model: Any) -> None:
    before = drawn(REFERENCE, model)
    assert outcome(Request(**{**vars(REFERENCE), "failure": failure, "at": 4, "seed": 1}), model) == failure
    assert torch.equal(drawn(REFERENCE, model), before)


def test_a_reference_that_changed_and_an_end_that_was_not_told_are_found(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Soak({"m": model}, 0)
        run.compare()
        assert not run.wrong
        run.first["m"] = run.first["m"] + 1
        run.compare()
        run._one(Request(**{**vars(REFERENCE), "failure": "cancelled", "at": 99}))
    assert len(run.wrong) == 2
    assert "| reference requests, bit-identical | 0 of 2 |" in markdown(run.record(60))


@pytest.mark.slow
def test_three_minutes_of_random_generations_leave_nothing_behind() -> None:
    record = soak(10**6, 3.0)
    assert not record["wrong"]
    assert record["growth"] < 0.03
    assert (record["last"]["threads"], record["last"]["files"]) == (record["settled"]["threads"], record["settled"]["files"])
