"""Modular pipelines of diffusers around the tiny transformers of `tests/pipelines.py`: the blocks from the embeddings of a prompt on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pipelines
import torch
from diffusers import modular_pipelines
from diffusers.modular_pipelines import ModularPipeline, SequentialPipelineBlocks
from pipelines import Tiny
from torch import Tensor


def _modular(blocks: str, source: Any, guidance: float | None = None, **more: Any) -> ModularPipeline:
    """The blocks of a kind of pipeline without those that read texts and pictures, with the components of a pipeline."""
    all_blocks: SequentialPipelineBlocks = getattr(modular_pipelines, blocks)()
    for name in ("text_encoder", "vae_encoder"):
        all_blocks.sub_blocks.pop(name, None)
    pipe = all_blocks.init_pipeline(**more)
    given = {name: part for name, part in source.components.items() if name in pipe.components and part is not None}
    if guidance is not None:
        given |= {name: diffusers.ClassifierFreeGuidance(guidance_scale=guidance) for name in pipe.components if name.startswith("guider")}
    pipe.update_components(**given)
    return pipe


def with_components(blocks: str, pipe: ModularPipeline) -> ModularPipeline:
    """Another pipeline with the components of one, but a scheduler and a guider of its own."""
    own = {name: type(part).from_config(part.config) for name, part in pipe.components.items() if name in ("scheduler", "guider")}
    other = _modular(blocks, pipe)
    other.update_components(**own)
    return other


def flux(**more: Any) -> Tiny:
    """One call a step: the guidance is embedded."""
    source, prompt = pipelines.flux()
    return _modular("FluxAutoBlocks", source, **more), _positive(prompt)


def sd3(**more: Any) -> Tiny:
    """A guider with separate calls that nobody names."""
    source, prompt = pipelines.sd3()
    return _modular("StableDiffusion3AutoBlocks", source, 3.0, **more), prompt


def qwen_image(**more: Any) -> Tiny:
    """The same; what the transformer is passed depends on its signature."""
    source, prompt = pipelines.qwen_image()
    return _modular("QwenImageAutoBlocks", source, 3.0, **more), prompt


def wan(transformers: int = 1, **more: Any) -> Tiny:
    """The same for a video, with one transformer or one for high and one for low noise, each with its own guider."""
    source, prompt = pipelines.wan(transformers)
    pipe = _modular("WanBlocks" if transformers == 1 else "Wan22Blocks", source, 3.0, **more)
    if transformers > 1:
        pipe.update_components(boundary_ratio=0.7)
    return pipe, prompt


def _positive(prompt: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    dropped = ("negative_", "true_cfg_scale")
    return lambda *args: {name: value for name, value in prompt(*args).items() if not name.startswith(dropped)}


MODULAR: dict[str, Callable[..., Tiny]] = {build.__name__: build for build in (flux, sd3, qwen_image, wan)}


def run(pipe: Any, arguments: Mapping[str, Any], seed: int = 0, steps: int = 8, **more: Any) -> Tensor:
    """One generation, as a latent."""
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), "output": "latents"}
    result: Tensor = pipe(**{**call, **arguments, **more})
    return result.clone()
