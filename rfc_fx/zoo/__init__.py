"""The small trained diffusion transformers that ship with the package, and how to draw from models like them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

DIGITS = Path(__file__).parent / "digits"
"""Folder of the digits model in diffusers' own format: config.json, safetensors, scheduler_config.json."""

DIGITS_PREDICTOR = Path(__file__).parent / "digits_predictor"
"""Folder of DisCa's predictor for the digits model (`rfc.DisCa`)."""

FLOW_DIGITS = Path(__file__).parent / "flow_digits"
"""Folder of the flow-matching digits model, a stock FLUX (`rfc_fx.zoo.flow_digits_model`)."""

EMOJI = Path(__file__).parent / "emoji"
"""Folder of the emoji model, a `FluxPipeline` of stock parts: a small text-to-image FLUX for 64x64 pixels."""

NULL_CLASS = 10
"""The label that stands for "no class" in classifier-free guidance."""


def digits(dtype: torch.dtype = torch.float32) -> Any:
    """Return the shipped digits model as a pipeline of diffusers (`rfc_fx.zoo.digits_pipeline`): `digits()([3, 8]).images`."""
    from rfc_fx.zoo.digits_pipeline import DigitsPipeline

    return DigitsPipeline(*load_digits(dtype))


def emoji(dtype: torch.dtype = torch.float32, folder: Path = EMOJI) -> Any:
    """Return the shipped emoji model as a pipeline (`rfc_fx.zoo.emoji_pipeline`): `emoji()("a red apple").images`.

    Guidance by `negative_prompt="", true_cfg_scale=3.0`. `folder`: another one of its kind. Raises ImportError without transformers,
    OSError where no pipeline is.
    """
    kind = emoji_class()
    options = {} if find_spec("accelerate") is not None else {"low_cpu_mem_usage": False}  # without accelerate the default warns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # older diffusers know no other name for torch_dtype
        return kind.from_pretrained(folder, torch_dtype=dtype, **options)


def emoji_class() -> Any:
    """`EmojiPipeline`; ImportError without transformers."""
    if find_spec("transformers") is None:
        raise ImportError("the emoji model's text encoders need the package transformers: pip install 'rfc-fx[text]'")
    from rfc_fx.zoo.emoji_pipeline import EmojiPipeline

    return EmojiPipeline


def load_digits(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return (`DiTTransformer2DModel` in eval mode, `DDIMScheduler`) of the shipped digits model."""
    return load(DIGITS, dtype)


def load_flow_digits(dtype: torch.dtype = torch.float32, folder: Path = FLOW_DIGITS) -> tuple[Any, Any]:
    """Return (`FluxTransformer2DModel` in eval mode, `FlowMatchEulerDiscreteScheduler`) of the flow-matching digits model.

    `rfc_fx.zoo.flow_digits_model.LabelledFlow` calls it with pictures and labels, as `sample` does. Raises OSError where `folder` is none.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False)
    return model.eval(), FlowMatchEulerDiscreteScheduler.from_pretrained(folder)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return the same of a folder of that format; raises OSError where it is none."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False)
    return model.eval(), DDIMScheduler.from_pretrained(folder)


def digits_noise(seeds: list[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, "N 1 8 8"]:
    """Starting noise, one generator per seed, so that a sample does not depend on its batch mates."""
    return starting_noise((1, 8, 8), seeds, dtype)


def starting_noise(shape: tuple[int, ...], seeds: list[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, "N C H W"]:
    """The same in any shape (C, H, W)."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(dtype)


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    scheduler: Any,
    labels: Int[Tensor, " N"],
    noise: Float[Tensor, "N C H W"],
    *,
    steps: int = 50,
    cfg: float = 1.5,
    null_class: int = NULL_CLASS,
    progress: Callable[[], object] | None = None,
) -> Float[Tensor, "N C H W"]:
    """Draw class-conditional samples with classifier-free guidance, both halves in one batch.

    eps = eps_uncond + cfg (eps_cond - eps_uncond); pixels are in [-1, 1]. `progress` is called after every step.
    A transformed model is told the timesteps (`CachedModel.prepare`).
    """
    scheduler.set_timesteps(steps, device=noise.device)
    if callable(prepare := getattr(model, "prepare", None)):
        prepare(scheduler.timesteps)
    x: Tensor = noise * getattr(scheduler, "init_noise_sigma", 1.0)  # those of flow matching begin with the noise as it is
    both = torch.cat([labels, torch.full_like(labels, null_class)])
    for t in scheduler.timesteps:
        eps = model(torch.cat([x, x]), timestep=t.expand(len(both)), class_labels=both).sample
        cond, uncond = eps.chunk(2)
        x = scheduler.step(uncond + cfg * (cond - uncond), t, x).prev_sample
        if progress is not None:
            progress()
    return x
