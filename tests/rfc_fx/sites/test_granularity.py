"""A budget of state: known before the first run, kept to, and refused with what there is to choose from."""

import re
from typing import Any, get_args

import pytest
import torch
from families import FAMILIES, moved
from torch import nn

import rfc
import rfc_fx
from rfc.granularity import GranularityName
from rfc_fx.sites.granularity import parse_bytes

pytestmark = pytest.mark.usefixtures("captured_once")

METHOD = rfc.RFC(tau=float("inf"))


@pytest.mark.parametrize("family", ["dit", "flux"])
def test_the_plan_says_what_every_granularity_and_type_would_take(family: str) -> None:
    model, kwargs = FAMILIES[family]()
    sizes = rfc_fx.transform(model, kwargs, method=METHOD).plan().alternatives
    for granularity in get_args(GranularityName):
        for dtype in (None, torch.bfloat16, torch.int8):
            made = rfc_fx.transform(model, kwargs, method=METHOD, granularity=granularity, state_dtype=dtype)
            assert made.plan().state_bytes == sizes[granularity][dtype]
            assert made.plan().alternatives[granularity][torch.float16] == sizes[granularity][torch.float16]


@pytest.mark.parametrize(("over", "chosen"), [(("module", 0), "module"), (("module", -1), "block"), (("block", -1), "stack")])
def test_auto_is_the_finest_granularity_that_fits(over: tuple[GranularityName, int], chosen: GranularityName) -> None:
    model, kwargs = FAMILIES["sd3"]()
    sizes = rfc_fx.transform(model, kwargs, method=METHOD).plan().alternatives
    budget = sizes[over[0]][None] + over[1]
    auto, fixed = (rfc_fx.transform(model, method=METHOD, granularity=g, state_budget=budget) for g in ("auto", chosen))
    for i in range(5):
        assert torch.equal(auto(**moved(kwargs, i)).sample, fixed(**moved(kwargs, i)).sample)
    assert auto.plan().state_bytes == sizes[chosen][None] <= budget
    assert auto.stats.phases == ["FULL"] * 3 + ["ESTIMATE"] * 2


def test_a_type_that_fits_keeps_the_finer_granularity() -> None:
    model, kwargs = FAMILIES["dit"]()
    sizes = rfc_fx.transform(model, kwargs, method=METHOD).plan().alternatives
    cached = rfc_fx.transform(
        model, kwargs, method=METHOD, granularity="auto", state_dtype=torch.int8, state_budget=sizes["module"][torch.int8]
    )
    assert cached.plan().state_bytes == sizes["module"][torch.int8]
    assert len(cached.plan().sites) == 4


@pytest.mark.parametrize("granularity", ["auto", "module"])
def test_a_budget_that_nothing_fits_is_refused_with_the_sizes(granularity: Any) -> None:
    model, kwargs = FAMILIES["dit"]()
    sizes = rfc_fx.transform(model, kwargs, method=METHOD).plan().alternatives
    with pytest.raises(rfc_fx.StateBudgetError) as refused:
        rfc_fx.transform(model, kwargs, method=METHOD, granularity=granularity, state_budget="1KB")
    text = str(refused.value)
    assert f"DiTTransformer2DModel: granularity='{granularity}' needs more state per context than state_budget=1,000 bytes" in text
    for name in get_args(GranularityName):
        assert f"{name} {sizes[name][None]:,}, {sizes[name][torch.bfloat16]:,} in bfloat16, {sizes[name][torch.int8]:,} in int8" in text


def test_a_model_without_a_site_says_so_whatever_the_budget() -> None:
    class Plain(nn.Module):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return hidden_states * timestep

    arguments = {"hidden_states": torch.randn(1, 4, 8), "timestep": torch.ones(1, 1, 1)}
    with pytest.raises(rfc_fx.NoSiteError, match="no site found"):
        rfc_fx.transform(Plain(), arguments, granularity="auto", state_budget="2GiB")


@pytest.mark.parametrize(
    ("given", "count"), [(4096, 4096), ("4096", 4096), ("2GiB", 2**31), ("1.5 kib", 1536), ("500 MB", 500_000_000), ("12B", 12)]
)
def test_a_budget_is_a_number_of_bytes_or_a_size_with_its_unit(given: int | str, count: int) -> None:
    assert parse_bytes(given) == count


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "", "2 GiBs", "lots", "-3GB", "1e9"])
def test_anything_else_is_refused(given: Any) -> None:
    message = f"state_budget must be a number of bytes such as 2147483648, '2GiB' or '500 MB', got {re.escape(repr(given))}"
    with pytest.raises(ValueError, match=message):
        rfc_fx.transform(nn.Linear(2, 2), state_budget=given)


def test_auto_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="granularity=\"auto\" needs a state_budget, such as state_budget='2GiB'"):
        rfc_fx.transform(nn.Linear(2, 2), granularity="auto")
