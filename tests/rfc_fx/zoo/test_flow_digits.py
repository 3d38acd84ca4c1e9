"""The flow-matching digits model is a stock FLUX that draws the asked digits, and is cached as any other."""

from __future__ import annotations

import torch

import rfc
import rfc_fx
from rfc_fx.zoo import digits_noise, load_flow_digits, sample
from rfc_fx.zoo.flow_digits_model import LabelledFlow


def test_it_draws_the_asked_digits() -> None:
    """Of the training digits the nearest has the asked label."""
    from sklearn.datasets import load_digits as real_digits

    real = real_digits()
    pictures = torch.as_tensor(real.images / 8.0 - 1.0).float().flatten(1)
    labels = torch.arange(10)
    model, scheduler = load_flow_digits()
    drawn = sample(LabelledFlow(model), scheduler, labels, digits_noise(list(range(10))), steps=12)
    nearest = torch.cdist(drawn.flatten(1), pictures).argmin(1)
    assert (torch.as_tensor(real.target)[nearest] == labels).sum() >= 9


def test_a_picture_goes_through_the_tokens_and_back() -> None:
    """A model that returns its tokens returns the picture."""
    x = torch.randn(2, 1, 8, 8)

    def tokens(hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        assert hidden_states.shape == (2, 16, 4)
        return (hidden_states,)

    assert torch.equal(LabelledFlow(tokens)(x, timestep=torch.full((2,), 500.0), class_labels=torch.tensor([1, 10])).sample, x)


def test_cached_it_draws_nearly_the_same_with_half_of_the_steps() -> None:
    model, scheduler = load_flow_digits()
    noise, labels = digits_noise([3, 4]), torch.tensor([3, 4])
    full = sample(LabelledFlow(model), scheduler, labels, noise, steps=12)
    cached = rfc_fx.transform(model, rfc.LogSNR(scheduler, 12, 6))
    with cached.generation():
        drawn = sample(LabelledFlow(cached), scheduler, labels, noise, steps=12)
    assert cached.stats.nfc == 6
    assert 0 < (drawn - full).norm() / full.norm() < 0.1
