"""The configuration checks itself when it is made, and comes back from JSON as it was."""

import json
import re
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rfc
import rfc_fx
from rfc.storage import STORED

HOST_ONLY: dict[str, tuple[dict[str, Any], str]] = {
    "hoist": ({"hoist": True}, "hoist=True"),
    "regional": ({"regional": True}, "regional=True"),
    "speculate": ({"speculate": True}, "speculate=True"),
    "decision": ({"decision": "per_sample"}, 'decision="per_sample"'),
}


@pytest.mark.parametrize(("option", "text"), HOST_ONLY.values(), ids=HOST_ONLY)
def test_an_option_that_needs_host_dispatch_is_refused_with_cond(option: dict[str, Any], text: str) -> None:
    rfc_fx.Config(**option)
    with pytest.raises(ValueError, match=f'^Config: {text} needs dispatch="host", got dispatch="cond"; a|^Config: {text} .*; the branches'):
        rfc_fx.Config(dispatch="cond", **option)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"granularity": "layer"}, ValueError, r"Config: granularity must be one of module, .* \(such as blocks\[1:\]\), got 'layer'"),
        ({"dispatch": "device"}, ValueError, "Config: dispatch must be one of host, cond, got 'device'"),
        ({"decision": "each"}, ValueError, "Config: decision must be one of batch, per_sample, got 'each'"),
        ({"state_dtype": torch.float64}, TypeError, "Config: state_dtype must be None or one of torch.bfloat16, .*, got torch.float64"),
        ({"hoist": "yes"}, TypeError, "Config: hoist must be True or False or None, got 'yes'"),
        ({"regional": None}, TypeError, "Config: regional must be True or False, got None"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(values: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        rfc_fx.Config(**values)


@pytest.mark.parametrize(
    ("size", "count"), [(4096, 4096), ("4096", 4096), ("2GiB", 2**31), ("1.5 kib", 1536), ("500 MB", 500_000_000), ("12B", 12)]
)
def test_a_budget_is_a_number_of_bytes_or_a_size_with_its_unit(size: int | str, count: int) -> None:
    assert rfc_fx.Config(state_budget=size).state_budget_bytes == count
    assert rfc_fx.Config(state_budget=size) == rfc_fx.Config(state_budget=count)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "", "2 GiBs", "2GiB x", "lots", "-3GB", "1e9"])
def test_any_other_budget_is_refused(size: Any) -> None:
    message = f"state_budget must be a number of bytes such as 2147483648, '2GiB' or '500 MB', got {re.escape(repr(size))}"
    with pytest.raises(ValueError, match=message):
        rfc_fx.Config(state_budget=size)


CONFIGS = st.builds(
    rfc_fx.Config,
    granularity=st.sampled_from([None, "module", "stack", "blocks[1:]"]),
    state_dtype=st.sampled_from([None, *STORED]),
    state_budget=st.none() | st.integers(1, 2**40),
    decision=st.sampled_from(["batch", "per_sample"]),
    hoist=st.sampled_from([None, True, False]),
    regional=st.booleans(),
    speculate=st.sampled_from([None, True, False]),
) | st.builds(rfc_fx.Config, dispatch=st.just("cond"), hoist=st.sampled_from([None, False]))


@given(config=CONFIGS)
def test_a_configuration_comes_back_from_json_as_it_was(config: rfc_fx.Config) -> None:
    assert rfc_fx.Config.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert set(config.as_dict()) == {field.name for field in fields(rfc_fx.Config)}


def test_an_unknown_field_or_type_in_json_is_refused() -> None:
    with pytest.raises(ValueError, match="Config: has no field 'precision'"):
        rfc_fx.Config.from_dict({"precision": 8})
    with pytest.raises(ValueError, match=r"Config: state_dtype must be None or one of bfloat16, .*, got 'int4'"):
        rfc_fx.Config.from_dict({"state_dtype": "int4"})


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        rfc_fx.Config().hoist = True  # type: ignore[misc]


def test_a_granularity_that_is_not_the_methods_own_is_refused() -> None:
    with pytest.raises(ValueError, match="transform: granularity: TeaCache works on 'stack', got 'module'; leave granularity out"):
        rfc_fx.transform(nn.Linear(2, 2), rfc.TeaCache(), config=rfc_fx.Config(granularity="module"))


@pytest.mark.parametrize("granularity", ["stack", "output", "prediction", "blocks[1:]"])
def test_a_method_that_verifies_a_block_is_refused_what_is_coarser(granularity: str) -> None:
    with pytest.raises(ValueError, match=f"transform: granularity: SpeCa .* got '{re.escape(granularity)}', expected 'module' or 'block'"):
        rfc_fx.transform(nn.Linear(2, 2), rfc.SpeCa(), config=rfc_fx.Config(granularity=granularity))
