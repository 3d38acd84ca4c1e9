"""Methods and calls as JSON: what goes in comes out, and what this package did not write is refused."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rfc
from rfc.encoding import classes_of
from rfc_export import ArtifactError, ExportError
from rfc_export.methods import DTYPES, check_method, decode_method, dtype_of, encode_method, name_of

ESTIMATORS = st.one_of(
    st.just(rfc.Reuse()),
    st.just(rfc.PredictorCorrector()),
    st.builds(rfc.Taylor, order=st.integers(1, 2)),
    st.builds(rfc.RFE, order=st.integers(1, 2), sketch=st.sampled_from([1, 16])),
    st.builds(rfc.Projective, order=st.integers(1, 2)),
    st.builds(rfc.Hermite, order=st.integers(1, 3), sigma=st.floats(0.1, 1)),
    st.builds(rfc.Newton, order=st.integers(1, 3)),
    st.builds(rfc.Aligned, most=st.floats(1, 2)),
    st.builds(rfc.RidgeChebyshev, degree=st.integers(0, 8), weight=st.floats(0, 1)),
)
STORED = st.builds(rfc.Stored, estimator=ESTIMATORS, differences=st.sampled_from([None, torch.int8, torch.bfloat16]))
THRESHOLDS = st.floats(0, 10) | st.just(math.inf)
SCHEDULES = st.one_of(
    st.builds(rfc.Every, interval=st.integers(1, 9)),
    st.builds(rfc.Listed, full_steps=st.sets(st.integers(0, 50), min_size=1).map(lambda steps: tuple(sorted(steps | {0})))),
    st.builds(rfc.Placed, full_steps=st.sets(st.integers(1, 50)).map(lambda steps: (0, *sorted(steps))), num_steps=st.integers(51, 99)),
    st.builds(rfc.RCS, tau=st.floats(0, 10) | st.just(math.inf), max_skip=st.none() | st.integers(1, 9)),
    st.builds(rfc.StepChange, threshold=THRESHOLDS, coefficients=st.lists(st.floats(-9, 9), min_size=1), num_steps=st.none() | st.just(28)),
    st.builds(rfc.AnchorChange, threshold=THRESHOLDS, warmup=st.integers(1, 9)),
    st.builds(rfc.ProbeChange, threshold=THRESHOLDS, against_input=st.booleans()),
    st.builds(rfc.OutputChange, threshold=THRESHOLDS, warmup=st.integers(2, 9), num_steps=st.none() | st.just(28)),
    st.builds(rfc.GrowingWindow, num_steps=st.integers(1, 99), growth=st.floats(0, 9)),
    st.builds(rfc.SpectralChange, threshold=THRESHOLDS, levels=st.none() | st.just((3.0, -3.0)), grid=st.none() | st.just((4, 8))),
    st.builds(rfc.Verified, base=st.floats(0, 9), decay=st.floats(0, 1), max_drafts=st.integers(1, 9), enhanced=st.integers(0, 5)),
)
PLACES = st.none() | st.sampled_from(["module", "block", "stack", "output", "blocks[1:]", "blocks[:-2]"])


@given(estimator=ESTIMATORS | STORED, schedule=SCHEDULES, granularity=PLACES, probe=st.integers(0, 3))
def test_a_method_comes_back_from_json_as_it_was(estimator: Any, schedule: Any, granularity: str | None, probe: int) -> None:
    method = rfc.Method(estimator=estimator, schedule=schedule, granularity=granularity, probe=probe)
    text = json.dumps(encode_method(method), allow_nan=False)
    again = decode_method(json.loads(text))
    assert again == method
    assert encode_method(again) == json.loads(text)


NAMED = [rfc.RFC(tau=0.2), rfc.FORA(interval=3), rfc.TaylorSeer(interval=5), rfc.FullCompute(), rfc.SpeCa(), rfc.TaylorSeerLite()]
NAMED += [rfc.DeltaDiT(), rfc.TeaCache(num_steps=28), rfc.FirstBlockCache(tail=1), rfc.DiCache(depth=2), rfc.MagCache(ratios=[1.0, 0.9])]
NAMED += [rfc.ToCa(), rfc.DuCa(grid=(4, 8)), rfc.Chebyshev(nfc=4), rfc.LogSNR(lambdas=(-math.inf, 0.0, 2.0)), rfc.NewtonRCS()]
NAMED += [rfc.EasyCache(num_steps=28), rfc.Spectrum(growth=3), rfc.FoCa(interval=5), rfc.SeaCache(grid=(4, 8))]
NAMED += [rfc.LogSNR(nfc=5, is_flow=True), rfc.LogSNR(lambdas=(-math.inf, 0.0, 2.0), is_flow=True)]


@pytest.mark.parametrize("method", NAMED, ids=repr)
def test_a_published_method_comes_back_as_it_was(method: Any) -> None:
    check_method(method)
    again = decode_method(json.loads(json.dumps(encode_method(method), allow_nan=False)))
    assert again == method


@pytest.mark.parametrize(
    ("method", "phases"), [(rfc.SpeCa(), "FULL, ESTIMATE, VERIFY"), (rfc.DuCa(parts=2), "FULL, PARTIAL_1, PARTIAL_2, REUSE")]
)
def test_a_method_of_more_than_two_phases_is_refused_for_one_conditional_step(method: Any, phases: str) -> None:
    text = f"export: {method.name} has the phases {phases}, an engine with dispatch='cond' has FULL and ESTIMATE; "
    with pytest.raises(ExportError, match=f"^{re.escape(text)}"):
        check_method(method, "cond")


@dataclass(frozen=True, kw_only=True)
class Half(rfc.Every):
    """A schedule of somebody else's."""

    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Twice(rfc.Taylor):
    """An estimator of somebody else's."""

    weights: tuple[float, ...] = (1.0, math.inf)


def test_classes_outside_the_package_come_back_only_where_they_are_passed() -> None:
    method = rfc.Method(estimator=rfc.Stored(estimator=Twice(), differences=torch.int8), schedule=Half(interval=3), name="mine")
    check_method(method)
    encoded = json.loads(json.dumps(encode_method(method), allow_nan=False))
    assert classes_of(method) == [Half, Twice]
    assert decode_method(encoded, classes_of(method)) == method
    text = f"method.schedule: {__name__}:Half is a class outside of rfc; import it yourself and pass it as one of classes=[...]"
    with pytest.raises(ArtifactError, match=f"^{re.escape(text)}$"):
        decode_method(encoded, [Twice])


def test_settings_that_json_cannot_hold_are_refused_by_name() -> None:
    class Loose(rfc.Every):
        """No dataclass of its own fields."""

    @dataclass(frozen=True, kw_only=True)
    class Holding(rfc.Every):
        model: Any = None

    with pytest.raises(ExportError, match=r"Holding\.model: JSON holds numbers, texts and lists of them, got <object"):
        encode_method(rfc.Method(estimator=rfc.Reuse(), schedule=Holding(interval=2, model=object())))
    with pytest.raises(ExportError, match=r"Holding\.model: expected a number, got nan"):
        encode_method(rfc.Method(estimator=rfc.Reuse(), schedule=Holding(interval=2, model=math.nan)))
    method = rfc.Method(estimator=rfc.Reuse(), schedule=Loose(interval=3))
    assert decode_method(encode_method(method), [Loose]) == method


SCHEDULES_THERE = ["Every", "Listed", "Placed", "Phased", "RCS", "AnchorChange", "StepChange", "ProbeChange"]
SCHEDULES_THERE += ["OutputChange", "SpectralChange", "Verified"]
SCHEDULES_THERE += ["ChebyshevPlaced", "LogSNRPlaced", "MagnitudePlaced", "Weighted", "GrowingWindow"]

GOOD = encode_method(rfc.Method(estimator=rfc.Stored(estimator=rfc.RFE(), differences=torch.int8), schedule=rfc.RCS(tau=0.1)))


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ({}, "expected estimator and schedule, got nothing"),
        (GOOD | {"seed": 1}, "expected estimator and schedule, got estimator, schedule, seed"),
        (GOOD | {"schedule": None}, f"method.schedule: type must be one of {', '.join(SCHEDULES_THERE)}, got None"),
        (GOOD | {"schedule": GOOD["estimator"]}, f"method.schedule: type must be one of {', '.join(SCHEDULES_THERE)}, got 'Stored'"),
        (GOOD | {"granularity": "atom"}, "method: granularity must be one of module, block, stack, output, prediction, blocks[a:b]"),
        (GOOD | {"granularity": 3}, "method: granularity must be one of module, block, stack, output, prediction, blocks[a:b]"),
        (GOOD | {"probe": -1}, "method: Method: probe must be an integer of at least 0, got -1"),
        (GOOD | {"tokens": GOOD["schedule"]}, "method.tokens: type must be one of Tokens, got 'RCS'"),
        (GOOD | {"schedule": {"type": ["RCS"]}}, "method.schedule: type must be one of"),
        (GOOD | {"schedule": {"type": "Every"}}, "method.schedule: Every has the fields interval"),
        (GOOD | {"schedule": GOOD["schedule"] | {"tau": None}}, "method.schedule: "),
        (GOOD | {"schedule": GOOD["schedule"] | {"tau": {}}}, "method.schedule: "),
        (GOOD | {"schedule": GOOD["schedule"] | {"over": "space"}}, "method.schedule: "),
        (GOOD | {"schedule": GOOD["schedule"] | {"lagged": "no"}}, "method.schedule.lagged: expected true or false, got 'no'"),
        (GOOD | {"schedule": {"type": "Listed", "full_steps": 3}}, "method.schedule: "),
        (GOOD | {"schedule": {"type": "Listed", "full_steps": ["a"]}}, "method.schedule: "),
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
