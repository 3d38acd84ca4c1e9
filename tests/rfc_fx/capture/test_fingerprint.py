"""A model that is changed after it was captured is captured anew; one that a graph would misrepresent is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import drawing
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from families import FAMILIES
from torch import Tensor, nn

import rfc
import rfc_fx
from rfc_fx.errors import CaptureError

generation = partial(drawing.generation, steps=8)

METHODS = {"rfc": rfc.RFC(tau=0.3), "fora": rfc.FORA(interval=3)}


class LowRank(nn.Module):
    """What an adapter library puts in place of a linear layer; its scale is a number of its forward."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.scaling, self.active_adapters = base, {"style": 1.0}, ["style"]
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scaling["style"] * self.up(self.down(x))


def adapt(model: Any) -> None:
    for block in model.transformer_blocks:
        block.attn1.to_v = LowRank(block.attn1.to_v)


def rescale(model: Any) -> None:
    for block in model.transformer_blocks:
        block.attn1.to_v.scaling["style"] = -2.0


def widen(model: Any) -> None:
    model.double()


def hook(model: Any) -> None:
    model.transformer_blocks[0].attn1.register_forward_hook(lambda module, args, output: output * 1.5)


QUICK = ((adapt, "rfc", False), (hook, "rfc", True), (widen, "rfc", True))
"""(change, method, whether `reset()` announces it)."""


@pytest.mark.parametrize(
    ("change", "method", "announced"),
    [
        pytest.param(change, method, announced, marks=() if (change, method, announced) in QUICK else pytest.mark.slow)
        for change in (adapt, hook, widen)
        for method in METHODS
        for announced in (True, False)
    ],
)
def test_a_change_between_generations_is_seen(change: Callable[[Any], None], method: str, announced: bool) -> None:
    model, kwargs = FAMILIES["dit"](layers=1)
    cached = rfc_fx.transform(model, METHODS[method])
    before = generation(cached, kwargs)
    for each in (change, rescale) if change is adapt else (change,):
        each(model)
        if change is widen:
            kwargs = {**kwargs, "hidden_states": kwargs["hidden_states"].double()}
        if announced:
            cached.reset()
        after = generation(cached, kwargs)
        assert not torch.equal(after, before)
        assert torch.equal(after, generation(rfc_fx.transform(model, METHODS[method]), kwargs))
        before = after


def test_new_values_in_the_same_weights_need_no_new_capture() -> None:
    model, kwargs = FAMILIES["dit"]()
    cached = rfc_fx.transform(model, METHODS["rfc"])
    generation(cached, kwargs)
    programs = cached.programs
    with torch.no_grad():
        model.transformer_blocks[0].ff.net[2].weight.mul_(1.1)  # a fused adapter
    cached.reset()
    assert torch.equal(generation(cached, kwargs), generation(rfc_fx.transform(model, METHODS["rfc"]), kwargs))
    assert cached.programs is programs


def compile_a_block(model: Any) -> None:
    model.transformer_blocks[1].compile(backend="eager")


def offload(model: Any) -> None:
    model.transformer_blocks[0]._hf_hook = object()


def cache(model: Any) -> None:
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))


@pytest.mark.parametrize(
    ("family", "change", "text"),
    [
        ("dit", compile_a_block, r"DiTTransformer2DModel\.transformer_blocks\.1: compiled already; transform first, compile after"),
        ("dit", offload, r"DiTTransformer2DModel\.transformer_blocks\.0: has an offloading hook of accelerate.*transform first"),
        ("flux", cache, r"FluxTransformer2DModel.*: has hooks of diffusers .*call model\.disable_cache\(\)"),
    ],
)
def test_what_a_graph_would_lose_is_refused_with_the_way_out(family: str, change: Callable[[Any], None], text: str) -> None:
    model, kwargs = FAMILIES[family]()
    transformed = rfc_fx.transform(model)
    change(model)
    with pytest.raises(CaptureError, match=text):
        rfc_fx.transform(model)
    with pytest.raises(CaptureError, match=text):
        transformed(**kwargs)
