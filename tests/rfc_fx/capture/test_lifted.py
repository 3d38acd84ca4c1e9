"""A plain number that changes from call to call is an input of one graph, or is said to be none (law O7)."""

import math
from typing import Any

import pytest
import torch
from families import FAMILIES
from peft import LoraConfig
from torch import Tensor, nn

import rfc
import rfc_fx

STEPS = 6


@torch.no_grad()
def loop(model: Any, kwargs: dict[str, Any], scales: list[float]) -> list[Tensor]:
    """A sampler's loop whose adapter has another scale in every step."""
    x, outputs = kwargs["hidden_states"], []
    for step, scale in enumerate(scales):
        call = {**kwargs, "hidden_states": x, "timestep": kwargs["timestep"] * (1 - step / STEPS)}
        outputs.append(model(**call, joint_attention_kwargs={"scale": scale})[0])
        x = x - 0.05 * outputs[-1]
    return outputs


@pytest.fixture(scope="module")
def adapted() -> tuple[Any, dict[str, Any]]:
    model, kwargs = FAMILIES["flux"](layers=1)
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")  # type: ignore[operator]
    return model.eval(), kwargs


def test_one_capture_serves_all_scales_of_an_adapter(adapted: tuple[Any, dict[str, Any]]) -> None:
    """1.0 has one of its own: the forward asks whether the scale is that."""
    model, kwargs = adapted
    scales = [1 - step / STEPS for step in range(STEPS)]
    plain = loop(model, kwargs, scales)
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0))
    assert all(torch.equal(got, expected) for got, expected in zip(loop(cached, kwargs, scales), plain, strict=True))
    cached.reset()
    assert all(torch.equal(got, expected) for got, expected in zip(loop(cached, kwargs, scales), plain, strict=True))
    assert len(cached.cache) == 2
    cached.method = rfc.RFC(tau=10.0)
    loop(cached, kwargs, scales[1:])
    assert cached.stats.phases == ["FULL"] * 3 + ["ESTIMATE"] * 2
    assert type(model.transformer_blocks[0].attn.to_q.scaling["style"]) is float


class Weighted(nn.Module):
    """A residual model whose blocks weigh what they add by a number."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))
        self.weight = weight

    def forward(self, hidden_states: Tensor, timestep: Tensor, strength: float) -> Tensor:
        for block in self.blocks:
            hidden_states = hidden_states + self.weight(strength) * block(hidden_states + timestep[:, None, None] / 1000)
        return hidden_states


def doubled_above_a_half(strength: float) -> float:
    return 2 * strength + 1 if strength > 0.5 else 1 / (1 + strength**2)


@torch.no_grad()
def weighted(model: Any, strengths: list[float]) -> list[Tensor]:
    x, outputs = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0)), []
    for step, strength in enumerate(strengths):
        outputs.append(model(x, torch.tensor([900.0 - 100 * step]), strength))
        x = x - 0.05 * outputs[-1]
    return outputs


STRENGTHS = [0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2]


def test_a_graph_is_for_the_numbers_that_answer_its_questions_alike() -> None:
    torch.manual_seed(0)
    model = Weighted(doubled_above_a_half).eval()
    cached = rfc_fx.transform(model, rfc.FullCompute())
    for _ in range(2):
        pairs = zip(weighted(cached, STRENGTHS), weighted(model, STRENGTHS), strict=True)
        assert all(torch.equal(got, expected) for got, expected in pairs)
    assert len(cached.cache) == 3  # the first number as it is, those above a half, those below


def test_a_number_that_python_reads_is_captured_anew_and_that_is_said() -> None:
    torch.manual_seed(0)
    model = Weighted(math.exp).eval()
    cached = rfc_fx.transform(model, rfc.FullCompute())
    with pytest.warns(rfc_fx.ChangingNumberWarning, match=r"^Weighted: strength is a number that changes .*captured anew"):
        got = weighted(cached, STRENGTHS)
    assert all(torch.equal(each, expected) for each, expected in zip(got, weighted(model, STRENGTHS), strict=True))
