"""Modular pipelines of diffusers: the same line, the same laws, guiders included."""

import threading
from typing import Any

import diffusers
import modular_pipelines
import pytest
import torch
from diffusers import ComponentsManager
from diffusers.guiders import SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from diffusers.utils.torch_utils import TorchDeviceBackend
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


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "sd3" else pytest.mark.slow) for name in MODULAR])
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


@pytest.mark.slow
def test_two_denoisers_have_a_guider_each_and_their_own_parts_of_the_levels() -> None:
    pipe, prompt = modular_pipelines.wan(2)
    rfc_fx.accelerate(pipe, nfc=8, compile=False)
    run(pipe, prompt(), steps=20)
    first, second = phases(pipe.transformer), phases(pipe.transformer_2)
    assert set(first) == set(second) == {"cond", "uncond"}
    assert len(first["cond"]) + len(second["cond"]) == 20
    assert (first["cond"] + second["cond"]).count("F") == 8


def test_guidance_that_is_off_for_some_steps_leaves_the_conditional_state_alone() -> None:
    pipe, prompt = modular_pipelines.sd3()
    pipe.update_components(guider=diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0, start=0.2, stop=0.7))
    plain = run(pipe, prompt(), steps=10)
    rfc_fx.accelerate(pipe, rfc.FORA(interval=1), config=rfc_fx.Config(hoist=False), compile=False)
    assert torch.equal(run(pipe, prompt(), steps=10), plain)
    rfc_fx.accelerate(pipe, rfc.FORA(interval=3), compile=False)
    run(pipe, prompt(), steps=10)
    assert phases(pipe.transformer) == {"cond": "FFEEFEEFEE", "uncond": "FFEEF"}


class BrokenPassError(Exception):
    """Raised where a guider has prepared a model."""


class BrokenGuidance(SkipLayerGuidance):  # type: ignore[misc]  # diffusers has no annotations there
    """Leaves a block out of the third pass of each step, and fails."""

    model: Any = None

    def prepare_models(self, denoiser: Any) -> None:
        super().prepare_models(self.model)
        if self._count_prepared == 3:
            raise BrokenPassError


def test_a_guider_whose_pass_fails_leaves_no_hook_in_the_model() -> None:
    pipe, prompt = modular_pipelines.sd3()
    plain, usual = run(pipe, prompt()), pipe.guider
    layers = LayerSkipConfig(indices=[0], fqn="transformer_blocks")
    broken = BrokenGuidance(skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=layers)
    broken.model = pipe.transformer
    pipe.update_components(guider=broken)
    rfc_fx.accelerate(pipe, compile=False)
    with pytest.raises(BrokenPassError):
        run(pipe, prompt())
    rfc_fx.restore(pipe)
    pipe.update_components(guider=usual)
    assert torch.equal(run(pipe, prompt()), plain)


def test_a_components_manager_hands_the_cached_model_to_other_pipelines_and_gets_the_plain_one_back(tmp_path: Any) -> None:
    manager = ComponentsManager()
    pipe, prompt = modular_pipelines.sd3(components_manager=manager, collection="first")
    model, held = pipe.transformer, dict(manager.components)
    rfc_fx.accelerate(pipe, compile=False)
    drawn = run(pipe, prompt())
    other, _ = modular_pipelines.sd3(components_manager=manager, collection="second")
    other.update_components(**manager.get_components_by_names(["transformer", "vae"], collection="first"))
    assert other.transformer is pipe.transformer is manager.get_one(name="transformer", collection="first")
    assert torch.equal(run(other, prompt()), drawn)  # it has the same levels
    rfc_fx.accelerate(other, nfc=4, compile=False)
    run(other, prompt())
    assert other.transformer.stats.nfc == 4
    assert len(pipe.transformer.cache) == 1
    with pytest.raises(ValueError, match=r"^accelerate: transformer is the cached SD3Transformer2DModel of another pipeline, made for"):
        rfc_fx.accelerate(modular_pipelines.with_components("StableDiffusion3AutoBlocks", pipe), rfc.RFC())
    other.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    assert "rfc" not in (tmp_path / "modular_model_index.json").read_text()
    rfc_fx.restore(pipe)
    assert pipe.transformer is model
    assert {key: value for key, value in manager.components.items() if key in held} == held


def test_a_components_manager_that_offloads_moves_the_cached_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchDeviceBackend, "mem_get_info", lambda self: (1 << 40, 1 << 40))
    manager = ComponentsManager()
    pipe, prompt = modular_pipelines.sd3(components_manager=manager)
    model = pipe.transformer
    manager.enable_auto_cpu_offload("cpu")
    plain = run(pipe, prompt())
    rfc_fx.accelerate(pipe, rfc.FullCompute(), config=rfc_fx.Config(hoist=False), compile=False)
    assert hasattr(pipe.transformer, "_hf_hook")
    assert not hasattr(model, "_hf_hook")
    assert torch.equal(run(pipe, prompt()), plain)
    rfc_fx.restore(pipe)
    assert hasattr(model, "_hf_hook")
    assert torch.equal(run(pipe, prompt()), plain)


def test_pipelines_that_share_a_transformer_run_in_threads() -> None:
    pipe, prompt = modular_pipelines.sd3()
    rfc_fx.accelerate(pipe, compile=False)
    pipes = [rfc_fx.accelerate(modular_pipelines.with_components("StableDiffusion3AutoBlocks", pipe), compile=False) for _ in range(2)]
    got: dict[int, Tensor] = {}

    def work(number: int) -> None:
        got[number] = run(pipes[number], prompt(number), seed=number, steps=8 + number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]  # they make the first call together
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert torch.equal(got[number], run(pipe, prompt(number), seed=number, steps=8 + number))
    assert len(pipe.transformer.cache) == 1
