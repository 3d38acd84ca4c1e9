"""The granularity that a method takes where nobody chose one: its default, the next finer where a model has no such site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from families import shared_model
from torch import nn

import rfc
import rfc_fx
from rfc.encoding import decode_method, encode_method
from rfc_fx.sites.granularity import granularities_for

pytestmark = pytest.mark.usefixtures("captured_once")

METHOD = rfc.Method(estimator=rfc.Taylor(order=1), schedule=rfc.Listed(full_steps=(0, 1, 4)), default_granularity="stack")


@pytest.mark.parametrize(
    ("method", "config", "tried"),
    [
        (METHOD, {}, ("stack", "block", "module")),
        (METHOD, {"state_budget": "1GiB"}, ("stack", "block", "module")),
        (METHOD, {"granularity": "module"}, ("module",)),
        (METHOD, {"granularity": "output"}, ("output",)),
        (replace(METHOD, granularity="block"), {}, ("block",)),
        (replace(METHOD, default_granularity="block"), {}, ("block", "module")),
        (replace(METHOD, default_granularity="output"), {}, ("output", "stack", "block", "module")),
        (replace(METHOD, default_granularity="prediction"), {}, ("prediction", "stack", "block", "module")),
        (replace(METHOD, default_granularity=None), {}, ("module",)),
        (replace(METHOD, default_granularity=None), {"state_budget": "1GiB"}, ("module", "block", "stack")),
    ],
)
def test_what_is_said_comes_before_the_default(method: rfc.Method, config: dict[str, Any], tried: tuple[str, ...]) -> None:
    assert granularities_for(rfc_fx.Config(**config), method) == tried


def test_the_default_of_log_snr_is_one_estimate_for_all_blocks() -> None:
    model, kwargs = shared_model("dit")
    method = rfc.LogSNR(lambdas=(-1.0, 0.0, 1.0), nfc=2)
    assert method.default_granularity == "stack"
    default, modules = (
        rfc_fx.transform(model, method, example_inputs=kwargs, config=config).plan()
        for config in (rfc_fx.Config(), rfc_fx.Config(granularity="module"))
    )
    assert len(default.sites) == 1
    assert len(modules.sites) > 1
    assert default.state_bytes < modules.state_bytes


def test_the_default_of_log_snr_for_a_flow_is_one_estimate_for_what_the_model_returns() -> None:
    model, kwargs = shared_model("flux")
    flow, other = FlowMatchEulerDiscreteScheduler(), DDIMScheduler()
    for method in (None, rfc.LogSNR(), rfc.LogSNR(nfc=3)):
        cached = rfc_fx.transform(model, method, source=flow, example_inputs=kwargs)
        assert cached.plan().sites == ["prediction"]
        assert cached.plan().estimate_flops == 0
        assert rfc_fx.transform(model, method, source=other).method.default_granularity == "stack"
    cached.method = rfc.LogSNR(nfc=2)  # another number of full steps, on the same programs
    assert cached.method.default_granularity == "prediction"
    assert rfc.LogSNR(FlowMatchEulerDiscreteScheduler(), 8, 4).default_granularity == "prediction"


@pytest.mark.parametrize("granularity", ["module", "block", "blocks[1:]"])
def test_what_other_blocks_read_is_not_corrected(granularity: str) -> None:
    method = rfc.LogSNR(FlowMatchEulerDiscreteScheduler(), 8, 4)
    assert method.within("stack") == method.within("prediction") == method
    assert not method.within(granularity).estimator.corrects
    assert rfc.eager.cached(shared_model("dit")[0], method, granularity).method == method.within(granularity)
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, method, example_inputs=kwargs, config=rfc_fx.Config(granularity=granularity))
    assert cached.compiled.guarded.method == method.within(granularity)
    weighted = rfc.Weighted(full_steps=[0, 2], num_steps=4, weights=[(0.1,)] * 4)
    with pytest.raises(ValueError, match="LinearPrediction is nothing without its corrections"):
        rfc.eager.cached(model, rfc.Method(estimator=rfc.LinearPrediction(order=1), schedule=weighted), granularity)


@pytest.mark.parametrize("method", [rfc.RFC(tau=0.1), rfc.Method(estimator=rfc.Taylor(), schedule=rfc.Every(interval=2), probe=1)])
def test_a_prediction_is_not_estimated_from_the_input_of_the_blocks(method: rfc.Method) -> None:
    model, kwargs = shared_model("dit")
    with pytest.raises(ValueError, match=r"input of the blocks, which has another shape .* got 'prediction', expected 'output' or a finer"):
        rfc_fx.transform(model, method, example_inputs=kwargs, config=rfc_fx.Config(granularity="prediction"))
    with pytest.raises(ValueError, match="'prediction'"):
        rfc.eager.cached(model, method, "prediction")


def test_the_twin_takes_the_default_too() -> None:
    model, _ = shared_model("dit")
    assert rfc.eager.cached(model, METHOD).granularity == "stack"
    assert rfc.eager.cached(model, METHOD, "module").granularity == "module"


class Branch(nn.Module):
    """A residual outside of any block."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.inner(hidden_states * timestep[:, None, None])


def test_a_model_without_that_site_gets_the_next_finer() -> None:
    call = {"hidden_states": torch.randn(1, 4, 8), "timestep": torch.ones(1)}
    made = rfc_fx.transform(Branch(), METHOD, example_inputs=call)
    assert made.compiled.analysis.granularity in ("stack", "block", "module")
    assert len(made.plan().sites) == 1


def test_it_is_kept_in_json() -> None:
    assert decode_method(encode_method(METHOD)) == METHOD
    assert "default_granularity" not in encode_method(rfc.RFC(tau=0.1))


def test_an_unknown_default_is_refused() -> None:
    with pytest.raises(ValueError, match="granularity must be one of module, block, stack, output"):
        rfc.Method(estimator=rfc.Reuse(), schedule=rfc.Every(interval=2), default_granularity="layer")
