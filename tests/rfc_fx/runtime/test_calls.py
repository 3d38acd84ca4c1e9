"""Calls: a timestep that is a plain number is taken as a tensor."""

from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import rfc
import rfc_fx


@pytest.fixture(scope="module")
def prior() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, embedding_dim=8, num_embeddings=7, additional_embeddings=4
    )
    names = {"hidden_states": (4, 8), "proj_embedding": (4, 8), "encoder_hidden_states": (4, 7, 8)}
    return model.eval(), {name: torch.randn(shape) for name, shape in names.items()}


def test_a_timestep_that_is_a_number_is_a_tensor_of_the_programs(prior: tuple[nn.Module, dict[str, Any]]) -> None:
    model, call = prior
    cached = rfc_fx.transform(model, rfc.FullCompute())
    positional = (call["hidden_states"], 5, call["proj_embedding"], call["encoder_hidden_states"])
    with torch.no_grad():
        for timestep in (9, 7, 7, 3):
            got = cached(timestep=timestep, **call).predicted_image_embedding
            assert torch.equal(got, model(timestep=timestep, **call).predicted_image_embedding)
        assert torch.equal(cached(*positional)[0], model(*positional)[0])
    assert len(cached.driver.programs) == 1


def test_generations_are_told_apart_by_numbers_too(prior: tuple[nn.Module, dict[str, Any]]) -> None:
    model, call = prior
    cached = rfc_fx.transform(model, rfc.Method(estimator=rfc.Taylor(order=1), schedule=rfc.Listed(full_steps=[0, 1])))
    with torch.no_grad():
        for timesteps in ((9, 7, 5), (9, 7)):
            latent = call["hidden_states"]
            for timestep in timesteps:
                latent = latent + 0.1 * cached(timestep=timestep, **{**call, "hidden_states": latent})[0]
    assert cached.stats.phases == ["FULL", "FULL"]
    assert len(cached.driver.programs) == 1


def test_the_example_may_have_a_number(prior: tuple[nn.Module, dict[str, Any]]) -> None:
    model, call = prior
    cached = rfc_fx.transform(model, rfc.FullCompute(), example_inputs={**call, "timestep": 9})
    with torch.no_grad():
        assert torch.equal(cached(timestep=2, **call)[0], model(timestep=2, **call)[0])
    assert len(cached.driver.programs) == 1
