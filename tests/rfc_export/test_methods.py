"""Methods and calls as JSON: what goes in comes out, and what this package did not write is refused."""

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rfc
from rfc_export import ArtifactError, ExportError
from rfc_export.methods import DTYPES, decode_method, dtype_of, encode_method, name_of

ESTIMATORS = st.one_of(
    st.just(rfc.Reuse()),
    st.builds(rfc.Taylor, order=st.integers(1, 2)),
    st.builds(rfc.RFE, order=st.integers(1, 2), sketch=st.sampled_from([1, 16])),
    st.builds(rfc.Projective, order=st.integers(1, 2)),
)
STORED = st.builds(rfc.Stored, estimator=ESTIMATORS, differences=st.sampled_from([None, torch.int8, torch.bfloat16]))
SCHEDULES = st.one_of(
    st.builds(rfc.Every, interval=st.integers(1, 9)),
    st.builds(rfc.Listed, steps=st.sets(st.integers(0, 50), min_size=1).map(lambda steps: tuple(sorted(steps | {0})))),
    st.builds(rfc.RCS, tau=st.floats(0, 10) | st.just(math.inf), max_skip=st.none() | st.integers(1, 9)),
)


@given(estimator=ESTIMATORS | STORED, schedule=SCHEDULES)
def test_a_method_comes_back_from_json_as_it_was(estimator: Any, schedule: Any) -> None:
    method = rfc.Method(estimator=estimator, schedule=schedule)
    text = json.dumps(encode_method(method), allow_nan=False)
    again = decode_method(json.loads(text))
    assert again == method
    assert encode_method(again) == json.loads(text)


@pytest.mark.parametrize("method", [rfc.RFC(tau=0.2), rfc.FORA(interval=3), rfc.TaylorSeer(interval=5), rfc.FullCompute()])
def test_a_named_method_comes_back_as_its_estimator_and_schedule(method: Any) -> None:
    again = decode_method(encode_method(method))
    assert (again.estimator, again.schedule) == (method.estimator, method.schedule)


def test_parts_of_somebody_elses_are_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class RCS(rfc.RCS):
        """Not the package's, though it is called so."""

    with pytest.raises(ExportError, match="is of a class of its own"):
        encode_method(rfc.Method(estimator=rfc.Reuse(), schedule=RCS(tau=0.1)))


GOOD = encode_method(rfc.Method(estimator=rfc.Stored(estimator=rfc.RFE(), differences=torch.int8), schedule=rfc.RCS(tau=0.1)))


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ({}, "expected estimator and schedule, got nothing"),
        (GOOD | {"seed": 1}, "expected estimator and schedule, got estimator, schedule, seed"),
        (GOOD | {"schedule": None}, "method.schedule: type must be one of Every, Listed, RCS, got None"),
        (GOOD | {"schedule": GOOD["estimator"]}, "method.schedule: type must be one of Every, Listed, RCS, got 'Stored'"),
        (GOOD | {"schedule": {"type": ["RCS"]}}, "method.schedule: type must be one of"),
        (GOOD | {"schedule": {"type": "Every"}}, "method.schedule: Every has the fields interval"),
        (GOOD | {"schedule": GOOD["schedule"] | {"tau": None}}, "method.schedule: "),
        (GOOD | {"schedule": GOOD["schedule"] | {"tau": {}}}, "method.schedule: "),
        (GOOD | {"schedule": GOOD["schedule"] | {"over": "space"}}, "method.schedule: "),
        (GOOD | {"schedule": GOOD["schedule"] | {"lagged": "no"}}, "method.schedule.lagged: expected true or false, got 'no'"),
        (GOOD | {"schedule": {"type": "Listed", "steps": 3}}, "method.schedule: "),
        (GOOD | {"schedule": {"type": "Listed", "steps": ["a"]}}, "method.schedule: "),
        (GOOD | {"estimator": GOOD["estimator"] | {"differences": "int4"}}, "method.estimator.differences: expected a dtype"),
        (GOOD | {"estimator": GOOD["estimator"] | {"differences": 8}}, "method.estimator: "),
        (GOOD | {"estimator": GOOD["estimator"] | {"estimator": "RFE"}}, "method.estimator.estimator: type must be one of"),
    ],
)
def test_what_no_method_is_is_refused_with_its_field(encoded: dict[str, Any], text: str) -> None:
    with pytest.raises(ArtifactError) as found:
        decode_method(encoded)
    assert text in str(found.value)


def test_every_dtype_has_one_name() -> None:
    assert [dtype_of("x", name_of(dtype)) for dtype in DTYPES.values()] == list(DTYPES.values())
    with pytest.raises(ArtifactError, match=r"slot: expected a dtype .*, got .int4."):
        dtype_of("slot", "int4")
    with pytest.raises(ExportError, match=r"torch\.complex64 cannot be exported"):
        name_of(torch.complex64)


def test_a_threshold_without_bound_is_a_word() -> None:
    method = rfc.Method(estimator=rfc.Reuse(), schedule=rfc.RCS(tau=math.inf))
    assert encode_method(method)["schedule"]["tau"] == "inf"
