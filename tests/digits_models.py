"""Small models like the digits model: with its weights' shapes, or tiny in its folder layout."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import nn

from rfc_fx.zoo import load_digits

TINY = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2, "norm_num_groups": 1}


def small_digits(seed: int = 0) -> nn.Module:
    """The digits model with one block and random weights."""
    config = dict(load_digits()[0].config) | {"num_layers": 1}
    torch.manual_seed(seed)
    return DiTTransformer2DModel(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()


def tiny_dit(seed: int = 0, **config: Any) -> nn.Module:
    """A random model of two narrow blocks that takes what the digits model takes."""
    torch.manual_seed(seed)
    return DiTTransformer2DModel(**{"in_channels": 1, "out_channels": 1, "num_embeds_ada_norm": 10, **TINY, **config})


def digits_folder(folder: Path, seed: int = 0, noise: float = 0.0) -> Path:
    """Such a model in the layout of the digits model; `noise` moves weights that are zero in a new model, modulation above all."""
    model: Any = tiny_dit(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder)
    DDIMScheduler(clip_sample=False).save_config(folder)
    return folder
