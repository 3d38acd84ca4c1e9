"""The granularity that a method takes where nobody chose one: its default, the next finer where a model has no such site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import shared_model
from torch import nn

import rfc
import rfc_fx
from rfc.encoding import decode_method, encode_method
from rfc_fx.sites.granularity import granularities_for

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
