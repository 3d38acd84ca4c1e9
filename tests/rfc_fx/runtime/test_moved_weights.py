"""Weights that move between generations have CUDA graphs recorded again, and a warning says so; a device is told, none is there."""

import sys
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import moved, shared_model
from torch import Tensor, nn

import rfc
import rfc_fx
from rfc_fx.runtime.cuda_graphs import Addresses, are_recorded, asks_for_graphs
from rfc_fx.runtime.warnings import MovedWeightsWarning

TREES = "torch._inductor.cudagraph_trees"


class Weight:
    """A weight on a CUDA device, at an address."""

    is_cuda, device = True, torch.device("cuda:0")

    def __init__(self, address: int) -> None:
        self.data = torch.empty(0)
        self.data_ptr = lambda: address


def recorded(monkeypatch: pytest.MonkeyPatch, *, on: int | None) -> None:
    """CUDA graphs were recorded on that device, or nowhere."""
    managers = {on: object()}
    trees = SimpleNamespace(get_manager=lambda index, create_if_none_exists: managers.get(index))
    monkeypatch.setitem(sys.modules, TREES, trees)


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize(
    ("settings", "on", "addresses", "warns"),
    [
        ({"mode": "reduce-overhead"}, None, (1, 2, 3), True),
        ({"fullgraph": True}, 0, (1, 2, 3), True),
        ({"fullgraph": True}, 1, (1, 2, 3), False),
        ({"fullgraph": True}, None, (1, 2, 3), False),
        ({"mode": "reduce-overhead"}, 0, (1, 1, 1), False),
        ({"mode": "reduce-overhead"}, 0, (1, 0, 1), True),
    ],
    ids=["asked", "wrapped", "on another device", "no graphs", "at rest", "back again"],
)
def test_weights_that_move_between_generations_are_said_once_where_graphs_are_recorded(
    settings: Mapping[str, Any],
    on: int | None,
    addresses: tuple[int, ...],
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    captured_once: None,
) -> None:
    recorded(monkeypatch, on=on)
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.FORA(interval=2), example_inputs=moved(kwargs, 0))
    cached.compile(**settings)
    lies = iter(addresses)
    with warnings.catch_warnings(record=True) as said, monkeypatch.context() as told:
        warnings.simplefilter("always")
        for _ in addresses:
            weight = Weight(next(lies))
            told.setattr(cached.cache._addresses, "_model", SimpleNamespace(parameters=lambda weight=weight: iter([weight])))
            cached.reset()
            for step in range(3):
                cached(**moved(kwargs, step))
    moves = [str(warning.message) for warning in said if warning.category is MovedWeightsWarning]
    assert len(moves) == warns
    assert all("enable_model_cpu_offload" in text for text in moves)


def test_addresses_are_those_of_plain_weights_on_a_cuda_device() -> None:
    class Packed(Tensor):
        """Weights whose memory lies elsewhere."""

    model = nn.Linear(2, 2)
    assert Addresses(model).moved_on() is None
    weights: list[Any] = [Weight(1)]
    addresses = Addresses(SimpleNamespace(parameters=lambda: iter(weights)))  # type: ignore[arg-type]
    assert addresses.moved_on() is None
    weights[0] = Weight(2)
    assert addresses.moved_on() == torch.device("cuda:0")
    assert addresses.moved_on() is None
    weights[0] = Weight(3)
    weights[0].data = torch.empty(0).as_subclass(Packed)
    assert addresses.moved_on() is None


def test_arguments_of_torch_compile_that_ask_for_graphs() -> None:
    asking: list[Mapping[str, Any]] = [{"mode": "reduce-overhead"}, {"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}]
    others: list[Mapping[str, Any]] = [{}, {"mode": "default"}, {"mode": "max-autotune-no-cudagraphs"}, {"options": None}]
    assert [*map(asks_for_graphs, asking)] == [True] * 3
    assert [*map(asks_for_graphs, others)] == [False] * 4


def test_nothing_is_recorded_where_nothing_was_imported_nor_in_a_thread_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.delitem(sys.modules, TREES, raising=False)
    assert not are_recorded(torch.device("cuda"))
    monkeypatch.setitem(sys.modules, TREES, SimpleNamespace(get_manager=refuse))
    assert not are_recorded(torch.device("cuda"))
    recorded(monkeypatch, on=0)
    assert are_recorded(torch.device("cuda"))
