"""`accelerate` uses CUDA graphs where they hold, and says why not; a device is told, none is there."""

from typing import Any

import pipelines
import pytest
import torch

import rfc_fx
from rfc_fx.pipelines import graphs
from rfc_fx.pipelines.accelerated import accelerated
from rfc_fx.pipelines.graphs import against_graphs, settle_graphs
from rfc_fx.pipelines.summary import without_graphs

pytestmark = pytest.mark.usefixtures("captured_once")

OPTIONS = {"fullgraph": True}


class Weight:
    """A weight that lies there."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


@pytest.fixture
def pipe() -> Any:
    return rfc_fx.accelerate(pipelines.dit()[0])


def settled(pipe: Any) -> Any:
    (model,) = accelerated(pipe).cached.values()
    settle_graphs(pipe, "transformer", model, OPTIONS)
    return model.compile_settings


def test_programs_run_as_cuda_graphs_where_these_hold(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = accelerated(pipe).cached.values()
    assert accelerated(pipe).graphs
    assert settled(pipe) == OPTIONS
    assert against_graphs(pipe, model) == graphs.ON_THE_CPU
    monkeypatch.setattr(model.model, "parameters", lambda: iter([Weight("cuda:1")]))
    assert settled(pipe) == OPTIONS | {"mode": "reduce-overhead"}
    monkeypatch.setattr(pipe, "_all_hooks", ["offloading"], raising=False)
    assert settled(pipe) == OPTIONS
    assert without_graphs(pipe, model) == "without CUDA graphs: offloading moves the weights, and every graph would be recorded anew"


def test_arguments_of_torch_compile_that_were_given_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = rfc_fx.accelerate(pipelines.dit()[0], compile={"backend": "eager"})
    assert not accelerated(pipe).graphs
    cond = rfc_fx.accelerate(pipelines.dit()[0], config=rfc_fx.Config(dispatch="cond"))
    (model,) = accelerated(cond).cached.values()
    monkeypatch.setattr(model.model, "parameters", lambda: iter([Weight("cuda")]))
    assert against_graphs(cond, model) == "the host reads the decision in the graph"
