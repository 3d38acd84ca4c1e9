"""Modular pipelines of diffusers: the same line, the same laws, guiders included."""

import threading
from typing import Any

import diffusers
import modular_pipelines
import pytest
import torch
from diffusers import ComponentsManager
from modular_pipelines import MODULAR, run
from torch import Tensor

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")


def phases(model: Any) -> dict[str, str]:
    return {name: "".join(phase[0] for phase in record.phases) for name, record in model.contexts.items()}


def trace(pipe: Any) -> Any:
    """All that a pipeline says of its components."""
    specs = {name: (spec.type_hint, spec.pretrained_model_name_or_path) for name, spec in pipe._component_specs.items()}
    return specs, dict(pipe.config), {name: id(value) for name, value in vars(pipe).items()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("sd3", "qwen_image") else pytest.mark.slow) for name in MODULAR])
def test_every_call_is_a_generation_and_restore_leaves_no_trace(name: str) -> None:
    pipe, prompt = MODULAR[name]()
    plain, model, before = run(pipe, prompt()), pipe.transformer, trace(pipe)
    rfc_fx.accelerate(pipe, rfc.FullCompute(), config=rfc_fx.Config(hoist=False), compile=False)
    assert torch.equal(run(pipe, prompt()), plain)
    assert trace(pipe)[:2] == before[:2]
    rfc_fx.accelerate(pipe, compile=False)
    for steps in (8, 12, 8):
        drawn = run(pipe, prompt(), steps=steps)
        placed = rfc.LogSNR(pipe.scheduler).schedule.full_steps
        decided = phases(pipe.transformer)
        assert set(decided) == ({"cond", "uncond"} if hasattr(pipe, "guider") else {"default"})
        for pattern in decided.values():
            assert [step for step, phase in enumerate(pattern) if phase == "F"] == list(placed)
    assert "cond" in str(rfc_fx.summary(pipe)) or name == "flux"
    assert not torch.equal(drawn, plain)
    rfc_fx.restore(pipe)
    assert pipe.transformer is model
    assert trace(pipe) == before
    assert torch.equal(run(pipe, prompt()), plain)
