"""The digits pipeline behaves as a pipeline of diffusers, and draws what the sampling function draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rfc_fx
from rfc_fx.zoo import digits, load_digits, sample


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = digits()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, labels: Any = (3, 8), seed: int = 0, **call: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return pipe(labels, **{"num_inference_steps": 4, "output_type": "latent", "generator": generator, **call}).images


def test_the_pipeline_draws_what_sample_draws(pipe: Any) -> None:
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(pipe), sample(*load_digits(), torch.tensor([3, 8]), noise, steps=4))


def test_pictures_come_as_asked(pipe: Any) -> None:
    assert draw(pipe, output_type="pt").shape == (2, 1, 8, 8)
    assert 0 <= draw(pipe, output_type="np").min() <= draw(pipe, output_type="np").max() <= 1
    (picture,) = draw(pipe, 7, output_type="pil")
    assert picture.size == (8, 8)
    assert np.asarray(picture).max() > 0


def test_a_saved_pipeline_loads_and_draws_the_same_also_after_a_transform(pipe: Any, tmp_path: Path) -> None:
    from rfc_fx.zoo.digits_pipeline import DigitsPipeline

    expected = draw(pipe)
    cached = digits()
    cached.transformer = rfc_fx.transform(cached.transformer)
    cached.save_pretrained(tmp_path / "digits")
    loaded = DigitsPipeline.from_pretrained(tmp_path / "digits")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), expected)


@pytest.mark.parametrize("labels", [10, -1, [], [1, 2.5], "3"])
def test_labels_that_the_model_has_no_class_for_are_refused(pipe: Any, labels: Any) -> None:
    with pytest.raises(ValueError, match="class_labels must be one or more integers of 0 to 9, got"):
        draw(pipe, labels)
