"""A budget of state: known before the first run, kept to, and refused with what there is to choose from."""

from typing import Any, get_args

import pytest
import torch
from families import moved, shared_model
from torch import nn

import rfc
import rfc_fx
from rfc.granularity import GranularityName

pytestmark = pytest.mark.usefixtures("captured_once")

METHOD = rfc.RFC(tau=float("inf"))


@pytest.mark.parametrize("family", ["dit", pytest.param("flux", marks=pytest.mark.slow)])
def test_the_plan_says_what_every_granularity_and_type_would_take(family: str) -> None:
    model, kwargs = shared_model(family)
    sizes = rfc_fx.transform(model, METHOD, example_inputs=kwargs).plan().alternatives
    for granularity in get_args(GranularityName):
        for dtype in (None, torch.bfloat16, torch.int8):
            made = rfc_fx.transform(model, METHOD, example_inputs=kwargs, config=rfc_fx.Config(granularity=granularity, state_dtype=dtype))
            assert made.plan().state_bytes == sizes[granularity][dtype]
            assert made.plan().alternatives[granularity][torch.float16] == sizes[granularity][torch.float16]


@pytest.mark.parametrize(("over", "chosen"), [(("module", 0), "module"), (("module", -1), "block"), (("block", -1), "stack")])
def test_a_budget_takes_the_finest_granularity_that_fits(over: tuple[GranularityName, int], chosen: GranularityName) -> None:
    model, kwargs = shared_model("sd3")
    sizes = rfc_fx.transform(model, METHOD, example_inputs=kwargs).plan().alternatives
    budget = sizes[over[0]][None] + over[1]
    finest, fixed = (rfc_fx.transform(model, METHOD, config=rfc_fx.Config(granularity=g, state_budget=budget)) for g in (None, chosen))
    for i in range(5):
        assert torch.equal(finest(**moved(kwargs, i)).sample, fixed(**moved(kwargs, i)).sample)
    assert finest.plan().state_bytes == sizes[chosen][None] <= budget
    assert finest.stats.phases == ["FULL"] * 3 + ["ESTIMATE"] * 2


def test_a_type_that_fits_keeps_the_finer_granularity() -> None:
    model, kwargs = shared_model("dit")
    sizes = rfc_fx.transform(model, METHOD, example_inputs=kwargs).plan().alternatives
    cached = rfc_fx.transform(
        model, METHOD, example_inputs=kwargs, config=rfc_fx.Config(state_dtype=torch.int8, state_budget=sizes["module"][torch.int8])
    )
    assert cached.plan().state_bytes == sizes["module"][torch.int8]
    assert len(cached.plan().sites) == 4


@pytest.mark.parametrize("granularity", [None, "module"])
def test_a_budget_that_nothing_fits_is_refused_with_the_sizes(granularity: Any) -> None:
    model, kwargs = shared_model("dit")
    sizes = rfc_fx.transform(model, METHOD, example_inputs=kwargs).plan().alternatives
    with pytest.raises(rfc_fx.StateBudgetError) as refused:
        rfc_fx.transform(model, METHOD, example_inputs=kwargs, config=rfc_fx.Config(granularity=granularity, state_budget="1KB"))
    text = str(refused.value)
    wanted = "every granularity" if granularity is None else "granularity='module'"
    assert f"DiTTransformer2DModel: {wanted} needs more state" in text
    assert "per context than state_budget=1,000 bytes" in text
    for name in get_args(GranularityName):
        assert f"{name} {sizes[name][None]:,}, {sizes[name][torch.bfloat16]:,} in bfloat16, {sizes[name][torch.int8]:,} in int8" in text


def test_a_model_without_a_site_says_so_whatever_the_budget() -> None:
    class Plain(nn.Module):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return hidden_states * timestep

    arguments = {"hidden_states": torch.randn(1, 4, 8), "timestep": torch.ones(1, 1, 1)}
    with pytest.raises(rfc_fx.NoSiteError, match="no site found"):
        rfc_fx.transform(Plain(), example_inputs=arguments, config=rfc_fx.Config(state_budget="2GiB"))
