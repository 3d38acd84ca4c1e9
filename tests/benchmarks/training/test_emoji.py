"""The emoji model's data, training and export, on drawings made up here and a tiny transformer."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

from benchmarks.training import emoji_alignment, emoji_autoencoder, emoji_data, emoji_export, emoji_judge, emoji_model, emoji_text
from benchmarks.training.emoji import Trainer
from benchmarks.training.emoji_batches import Data, Recipe, latents_of
from benchmarks.training.emoji_data import WORDINGS, Icons, caption, combinations
from benchmarks.training.emoji_export import load_pipeline
from benchmarks.training.emoji_names import BACKGROUNDS, EMOJI, STYLES
from benchmarks.training.emoji_text import TOKENS, all_captions, token_ids

RECIPE = Recipe(batch=2, warmup_steps=2)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return emoji_text.tokenizers(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def data(tokenizers: tuple[Any, Any]) -> Data:
    trained, held_out = (rows[:8] for rows in combinations())
    generator = torch.Generator().manual_seed(0)
    return Data(
        trained=(trained, torch.randn(8, 64, 16, generator=generator)),
        held_out=(held_out, torch.randn(8, 64, 16, generator=generator)),
        tokenizers=tokenizers,
    )


def new_trainer(data: Data) -> Trainer:
    return Trainer(data, RECIPE, 0, lambda: emoji_model.new_transformer(double_blocks=1, single_blocks=1, heads=1))


def icons() -> Icons:
    rgba = torch.zeros(len(EMOJI), len(STYLES), 4, 64, 64, dtype=torch.uint8)
    rgba[:, :, 3, 20:44, 20:44] = 255
    return Icons(rgba=rgba)


def test_a_caption_names_emoji_style_and_background() -> None:
    apple, flat, blue = list(EMOJI).index("apple"), list(STYLES).index("flat"), list(BACKGROUNDS).index("light blue")
    assert caption((apple, flat, blue)) == "an apple, flat style, on light blue"
    assert caption((apple, flat, blue), WORDINGS[1]) == "apple on light blue, flat style"


def test_held_out_combinations_are_not_trained_and_every_emoji_and_style_is() -> None:
    trained, held_out = (set(map(tuple, rows.tolist())) for rows in combinations())
    assert not trained & held_out
    assert len(trained) + len(held_out) == len(EMOJI) * len(STYLES) * len(BACKGROUNDS)
    assert {row[:2] for row in trained} == {row[:2] for row in held_out}


def test_no_caption_is_cut_and_no_word_unknown(tokenizers: tuple[Any, Any]) -> None:
    texts = sorted(set(all_captions()), key=len)[-2000:]
    for tokenizer in tokenizers:
        ids = tokenizer(texts).input_ids
        assert max(map(len, ids)) <= tokenizer.model_max_length
        assert tokenizer.unk_token_id == tokenizer.eos_token_id or all(tokenizer.unk_token_id not in row for row in ids)


def test_a_run_keeps_its_tokenizers(tmp_path: Path) -> None:
    first, again = (emoji_text.tokenizers(tmp_path)[0].get_vocab() for _ in range(2))
    assert first == again


def test_captions_are_padded_to_one_length(tokenizers: tuple[Any, Any]) -> None:
    assert token_ids(tokenizers[1], ["", "a cat"], TOKENS).shape == (2, TOKENS)


def test_missing_icons_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="npm install --prefix"):
        emoji_data.icon_set(tmp_path, "noto")
    with pytest.raises(typer.BadParameter, match=r"python -m benchmarks\.training\.emoji_data"):
        emoji_data.load(tmp_path / "emoji.safetensors")


def test_packed_latents_are_those_of_flux_pipeline() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(emoji_model.pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 16, 16), rtol=0, atol=0)
    ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(emoji_model.image_ids(8, 8), ids, rtol=0, atol=0)


@pytest.mark.slow
def test_a_decoder_that_learns_on_leaves_the_latents_as_they_are(tmp_path: Path) -> None:
    console = Console(quiet=True)
    first = emoji_autoencoder.train(icons(), tmp_path, 0.01, 0, console)
    minutes = torch.load(tmp_path / "autoencoder.pt", weights_only=True)["seconds"] / 60
    refined = emoji_autoencoder.train(icons(), tmp_path, minutes + 0.02, 0, console, decoder_only=True)
    pictures = icons().compose(combinations()[0][:2])
    assert torch.equal(emoji_autoencoder.encode(first, pictures), emoji_autoencoder.encode(refined, pictures))
    assert refined.config.scaling_factor == first.config.scaling_factor
    assert not torch.equal(first.decoder.conv_out.weight, refined.decoder.conv_out.weight)
    assert emoji_autoencoder.load(tmp_path).config.shift_factor == first.config.shift_factor


def test_latents_of_pictures_are_packed() -> None:
    assert latents_of(emoji_autoencoder.new_autoencoder(), icons(), combinations()[0][:3]).shape == (3, 64, 16)


def test_resumed_training_goes_on_bit_for_bit(data: Data) -> None:
    whole = new_trainer(data)
    first = new_trainer(data)
    for _ in range(2):
        whole.train_step(0.0)
        first.train_step(0.0)
    resumed = new_trainer(data)
    resumed.restore(first.state())
    for _ in range(2):
        assert torch.equal(whole.train_step(0.0), resumed.train_step(0.0))
    assert all(torch.equal(a, b) for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True))
    assert whole.held_out_loss(4) == resumed.held_out_loss(4)


def test_aligned_text_encoders_predict_latents_and_are_kept(data: Data, tmp_path: Path) -> None:
    model, again = (new_trainer(data).model for _ in range(2))
    console = Console(record=True, width=200, file=io.StringIO())
    emoji_alignment.train(model, lambda size: data.batch(RECIPE, 8), tmp_path / "text.pt", 100, console)
    errors = [float(error) for error in re.findall(r"tokens ([\d.]+)", console.export_text())]
    assert errors[1] < errors[0]
    emoji_alignment.train(again, lambda size: data.batch(RECIPE, 8), tmp_path / "text.pt", 100, console)
    for part in ("text_encoder", "text_encoder_2"):
        pairs = zip(getattr(model, part).parameters(), getattr(again, part).parameters(), strict=True)
        assert all(torch.equal(weight, kept) for weight, kept in pairs)


def test_a_written_pipeline_draws_what_the_parts_draw(data: Data, tmp_path: Path) -> None:
    pipe = emoji_model.pipeline(new_trainer(data).average, data.tokenizers, emoji_autoencoder.new_autoencoder().eval())
    pipe.to(torch.float16).save_pretrained(tmp_path)
    pipe.to(torch.float32)
    pictures = emoji_model.sample(pipe, ["a cat", "a dog"], [0, 1], steps=2)
    assert pictures.shape == (2, 3, 64, 64)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (loaded.transformer, loaded.vae, loaded.text_encoder, loaded.text_encoder_2)} == {torch.float32}
    torch.testing.assert_close(emoji_model.sample(loaded, ["a cat", "a dog"], [0, 1], steps=2), pictures)


def test_the_judge_reads_the_background_of_a_drawing() -> None:
    rows = combinations()[0][::50]
    assert emoji_judge.background_read(icons().compose(rows), rows[:, 2]).all()


def test_the_judge_compares_a_label_with_nineteen_others() -> None:
    labels = torch.tensor([3, 5])
    pictures = torch.zeros(2, 3, 64, 64)
    right = torch.nn.functional.one_hot(labels, len(EMOJI)).float()
    assert emoji_judge.emoji_read(lambda x: right, pictures, labels).tolist() == [1, 1]
    assert emoji_judge.emoji_read(lambda x: -right, pictures, labels).tolist() == [0, 0]


def test_the_card_states_figures_and_credits() -> None:
    reading = emoji_judge.Reading(samples=500, emoji=0.875, background=0.99)
    text = emoji_export.card({"trained": reading, "held out": reading, "drawings": reading}, 28, 10.8, 3000, 90.0, "two cores")
    assert "| trained captions | 500 | 87.5% | 99.0% |" in text
    assert all(licence in text for licence in ("MIT", "Apache-2.0", "CC BY 4.0"))


@pytest.mark.parametrize("name", ["FluxImg2ImgPipeline", "FluxInpaintPipeline"])
def test_the_same_parts_draw_from_a_picture(data: Data, name: str) -> None:
    import diffusers

    text_to_image = emoji_model.pipeline(new_trainer(data).average, data.tokenizers, emoji_autoencoder.new_autoencoder().eval())
    pipe = getattr(diffusers, name)(**{key: part for key, part in text_to_image.components.items() if part is not None})
    pipe.set_progress_bar_config(disable=True)
    picture = icons().compose(combinations()[0][:1]) / 2 + 0.5
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, :, 32:] = 1.0
    drawn = pipe(
        "a cat",
        image=picture,
        **({"mask_image": mask} if "Inpaint" in name else {}),
        strength=0.6,
        num_inference_steps=4,
        height=64,
        width=64,
        max_sequence_length=TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert drawn.shape == (1, 3, 64, 64)
    assert drawn.isfinite().all()
