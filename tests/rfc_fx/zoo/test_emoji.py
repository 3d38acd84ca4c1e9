"""The emoji model draws from prompts, with full steps and with estimated ones, from noise and from a picture."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import command
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from PIL import Image
from torch import Tensor

import rfc
import rfc_fx
from rfc_export import cli
from rfc_fx.zoo import emoji

PROMPTS = {
    "an apple, flat style, on light blue": (158, 216, 246),
    "a cat, noto style, on yellow": (255, 236, 128),
    "a rocket, twemoji style, on dark blue": (28, 44, 120),
    "a sunflower, flat style, on pink": (255, 176, 204),
}
"""Captions with the colour of the background, RGB."""

APPLE = next(iter(PROMPTS))
pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 16
GUIDANCE = {"negative_prompt": "", "true_cfg_scale": 3.0}
SIZE = {"height": 64, "width": 64, "max_sequence_length": 12}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return quiet(emoji())


@pytest.fixture(scope="module")
def full(pipe: Any) -> dict[str, Tensor]:
    """Latents of full computation by prompt."""
    return {prompt: draw(pipe, prompt) for prompt in PROMPTS}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str = APPLE, steps: int = STEPS, **call: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": steps, "generator": generator, "output_type": "latent", **GUIDANCE, **call}
    latents: Tensor = pipe(prompt, **arguments).images
    return latents


@contextmanager
def accelerated(pipe: Any, method: rfc.Method | None = None, **options: Any) -> Iterator[Any]:
    """The pipeline accelerated and not compiled, for the time of a block."""
    yield rfc_fx.accelerate(pipe, method, compile=False, **options)
    rfc_fx.restore(pipe)


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def full_steps(pipe: Any) -> list[int]:
    """Number of full steps in every context."""
    return [generation.nfc for generation in rfc_fx.summary(pipe).models["transformer"].contexts.values()]


@torch.no_grad()
def pixels(pipe: Any, latents: Tensor) -> Tensor:
    """(3, 64, 64) in 0 to 255."""
    unpacked = pipe._unpack_latents(latents, 64, 64, pipe.vae_scale_factor)
    picture = pipe.vae.decode(unpacked / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    return ((picture[0] + 1) * 127.5).clamp(0, 255)


def test_all_steps_full_is_the_untouched_pipeline(pipe: Any) -> None:
    expected = draw(pipe, steps=4)
    with accelerated(pipe, rfc.TaylorSeer(interval=1)) as fast:
        assert relative(draw(fast, steps=4), expected) < 1e-5


def test_log_snr_is_nearer_to_full_computation_than_taylorseer_at_equal_full_steps(pipe: Any, full: dict[str, Tensor]) -> None:
    errors = {}
    for name, method, options in (("taylorseer", rfc.TaylorSeer(interval=4), {}), ("log-snr", None, {"nfc": 5})):
        with accelerated(pipe, method, **options) as fast:
            errors[name] = sum(relative(draw(fast, prompt), full[prompt]) for prompt in [*PROMPTS][:2])
            assert full_steps(fast) == [5, 5]
    assert errors["log-snr"] < 0.8 * errors["taylorseer"]


def test_another_prompt_is_another_picture(full: dict[str, Tensor]) -> None:
    apple, cat, *_ = full.values()
    assert relative(apple, cat) > 0.3


def test_backgrounds_have_the_colours_of_the_prompts(pipe: Any, full: dict[str, Tensor]) -> None:
    for prompt, color in PROMPTS.items():
        picture = pixels(pipe, full[prompt])
        frame = torch.cat(
            [picture[:, :3].flatten(1), picture[:, -3:].flatten(1), picture[:, :, :3].flatten(1), picture[:, :, -3:].flatten(1)], 1
        )
        median = frame.median(dim=1).values
        nearest = min(PROMPTS.values(), key=lambda other: float((median - torch.tensor(other)).norm()))
        assert nearest == color, f"{prompt}: {median.tolist()}"


@pytest.mark.parametrize("kind", [FluxImg2ImgPipeline, FluxInpaintPipeline])
def test_pipelines_that_begin_with_a_picture_take_the_same_components(pipe: Any, full: dict[str, Tensor], kind: Any) -> None:
    picture = Image.fromarray(pixels(pipe, full[APPLE]).round().byte().permute(1, 2, 0).contiguous().numpy())
    begin = {"image": picture, "strength": 0.6, **SIZE}
    if kind is FluxInpaintPipeline:
        begin["mask_image"] = Image.new("L", (64, 64), 255)
    other = quiet(kind(**pipe.components))
    expected = draw(other, "a tomato on light blue", steps=10, **begin)
    with accelerated(other, nfc=3) as fast:
        drawn = draw(fast, "a tomato on light blue", steps=10, **begin)
        assert full_steps(fast) == [3, 3]
    assert 0 < relative(drawn, expected) < 0.5


def test_a_saved_pipeline_draws_the_same_also_as_a_stock_flux_pipeline(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    expected = draw(pipe, steps=2)
    assert torch.equal(draw(quiet(emoji(folder=tmp_path)), steps=2), expected)
    assert torch.equal(draw(quiet(FluxPipeline.from_pretrained(tmp_path)), steps=2, **SIZE), expected)


def test_the_command_line_draws_64_pixels_in_float32(tmp_path: Path) -> None:
    call = ("--prompt", APPLE, "--prompt", "a cat", "--negative-prompt", "", "--call", "true_cfg_scale=3", "--steps", 4)
    done = command.run(cli.app, "generate", "--model", "emoji", *call, "--nfc", 2, "--no-compile", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert (settings["pipeline"], settings["dtype"], settings["groups"]) == ("EmojiPipeline", "float32", [APPLE, "a cat"])
    with Image.open(tmp_path / "log-snr-prompt1-seed0.png") as picture:
        assert picture.size == (64, 64)


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs? the package transformers: pip install 'rfc-fx\[text\]'"):
        emoji()
