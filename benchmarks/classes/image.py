"""Image transformers."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.classes.spec import Draw, Size, Spec


def _flux_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = (4, 5) if size == "tiny" else (64, 512)
    ids = torch.zeros(side * side, 3)
    ids[:, 1] = torch.arange(side * side) // side
    ids[:, 2] = torch.arange(side * side) % side
    return {
        "hidden_states": draw(2, side * side, config.in_channels),
        "encoder_hidden_states": draw(2, text, config.joint_attention_dim),
        "pooled_projections": draw(2, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5, 0.5]),
        "guidance": torch.tensor([3.5, 3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(text, 3),
    }


FLUX = Spec(
    name="FluxTransformer2DModel",
    tiny={
        "in_channels": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    },
    real={"guidance_embeds": True},
    depth=lambda layers: {"num_layers": layers, "num_single_layers": layers},
    inputs=_flux_inputs,
)

SPECS = [FLUX]
