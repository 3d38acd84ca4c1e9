"""Pipelines of `tests/pipelines.py` with tiny text encoders, saved as folders that a command line can draw from."""

from __future__ import annotations

import math
import string
from pathlib import Path
from typing import Any

import diffusers
import pipelines
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def clip(width: int) -> tuple[Any, Any]:
    """A text encoder and its tokenizer, which knows letters."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate([*special, *letters])}, merges=[], model_max_length=16)
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval(), tokenizer


def t5(width: int) -> tuple[Any, Any]:
    """The same of the other kind."""
    pieces = [(letter, math.log(1 / 30)) for letter in (SPACE, *string.ascii_lowercase)]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces], extra_ids=0, model_max_length=16)
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=width, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    return T5EncoderModel(config).eval(), tokenizer


def flux(folder: Path, kind: str = "FluxPipeline", dtype: torch.dtype = torch.float32) -> Path:
    """Text to picture, or picture and text to picture, with the dynamic shift of FLUX.1-dev."""
    pipe, _ = pipelines.flux(kind)
    (encoder, tokenizer), (encoder_2, tokenizer_2) = clip(32), t5(32)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2, scheduler=scheduler)
    pipe.to(dtype).save_pretrained(folder)
    return folder


def wan(folder: Path, transformers: int = 1) -> Path:
    """Text to video, in one transformer or two."""
    pipe, _ = pipelines.wan(transformers)
    encoder, tokenizer = t5(16)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    pipe.save_pretrained(folder)
    return folder


def ltx(folder: Path) -> Path:
    """Text to video with a frame rate of the call."""
    pipe, _ = pipelines.ltx()
    encoder, tokenizer = t5(16)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    pipe.save_pretrained(folder)
    return folder


def stable_audio(folder: Path) -> Path:
    """Text to sound."""
    torch.manual_seed(4)
    transformer = diffusers.StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=2,
        attention_head_dim=4,
        num_key_value_attention_heads=2,
        num_attention_heads=2,
        cross_attention_dim=4,
        cross_attention_input_dim=4,
        global_states_input_dim=8,
        time_proj_dim=4,
        out_channels=3,
    )
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    projection = diffusers.StableAudioProjectionModel(text_encoder_dim=4, conditioning_dim=4, min_value=0, max_value=32)
    encoder, tokenizer = t5(4)
    pipe = diffusers.StableAudioPipeline(
        vae=vae.eval(),
        text_encoder=encoder,
        projection_model=projection,
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    )
    pipe.save_pretrained(folder)
    return folder


def sd3(folder: Path) -> Path:
    """Text to picture with three text encoders, two of which give their hidden states."""
    pipe, _ = pipelines.sd3()
    parts: dict[str, Any] = {}
    for suffix, projected in (("", 4), ("_2", 6)):
        plain, parts[f"tokenizer{suffix}"] = clip(6)
        plain.config.projection_dim = projected
        parts[f"text_encoder{suffix}"] = CLIPTextModelWithProjection(plain.config).eval()
    parts["text_encoder_3"], parts["tokenizer_3"] = t5(12)
    pipe.register_modules(**parts)
    pipe.save_pretrained(folder)
    return folder


def pixart(folder: Path) -> Path:
    """Text to picture with a mask for the text, guidance in one batch."""
    pipe, _ = pipelines.pixart_sigma()
    encoder, tokenizer = t5(12)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer, scheduler=diffusers.DPMSolverMultistepScheduler())
    pipe.save_pretrained(folder)
    return folder


def dit(folder: Path) -> Path:
    """Class to picture."""
    pipe, _ = pipelines.dit()
    pipe.save_pretrained(folder)
    return folder
