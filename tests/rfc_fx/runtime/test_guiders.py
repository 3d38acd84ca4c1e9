"""Guiders put hooks on the blocks for one call of a step: the model itself makes that call, all others are cached."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, LayerSkipConfig
from diffusers.guiders import SkipLayerGuidance
from families import FAMILIES
from tolerances import WHOLE_CALL
from torch import Tensor

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")

SKIPS = r"hooks of a guider on the model \(SkipLayerGuidance_0\) are made by the model itself"


@torch.no_grad()
def draw(model: Any, call: dict[str, Any], blocks: str = "transformer_blocks", steps: int = 6) -> Tensor:
    """The loop of a modular pipeline: three calls a step, the third with a block left out. `blocks`: where the guider looks for them."""
    x, texts = call["hidden_states"][:1], (call["encoder_hidden_states"][:1], 0.5 * call["encoder_hidden_states"][:1])
    pooled = (call["pooled_projections"][:1], 0.5 * call["pooled_projections"][:1])
    config = LayerSkipConfig(indices=[1, 2], fqn=blocks)
    guider = SkipLayerGuidance(3.0, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=config)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    for i, t in enumerate(scheduler.timesteps):
        guider.set_state(step=i, num_inference_steps=steps, timestep=t)
        batches = guider.prepare_inputs({"encoder_hidden_states": texts, "pooled_projections": pooled})
        for batch in batches:
            guider.prepare_models(model)
            given = {"encoder_hidden_states": batch.encoder_hidden_states, "pooled_projections": batch.pooled_projections}
            batch.noise_pred = model(hidden_states=x, timestep=t.expand(1), return_dict=False, **given)[0]
            guider.cleanup_models(model)
        x = scheduler.step(guider(batches)[0], t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("blocks", [pytest.param("transformer_blocks", marks=pytest.mark.slow), "model.transformer_blocks"])
def test_calls_with_hooks_are_the_models_own_and_the_others_are_cached(blocks: str) -> None:
    model, call = FAMILIES["sd3"](layers=3)
    plain = draw(model, call)
    cached = rfc_fx.transform(model, rfc.FORA(interval=1000))
    with pytest.warns(rfc_fx.ForeignHooksWarning, match=SKIPS):
        estimated = draw(cached, call, blocks)
    assert all("ESTIMATE" in record.phases for record in cached.contexts.values())
    assert not torch.equal(estimated, plain)
    cached.method = rfc.FORA(interval=1)
    cached.reset()
    assert torch.equal(draw(cached, call, blocks), plain)


class Guided(DiffusionPipeline):
    """A pipeline whose guider leaves a block out."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def __call__(self, call: dict[str, Any]) -> Tensor:
        return draw(self.transformer, call)


def test_a_pipeline_with_a_guider_is_accelerated() -> None:
    model, call = FAMILIES["sd3"](layers=3)
    plain = draw(model, call)
    pipe = Guided(model, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    rfc_fx.accelerate(pipe, rfc.FORA(interval=1), compile=False)
    with pytest.warns(rfc_fx.ForeignHooksWarning, match=SKIPS):
        first = pipe(call)
    for got in (first, pipe(call)):
        assert float((got - plain).norm() / plain.norm()) <= WHOLE_CALL
