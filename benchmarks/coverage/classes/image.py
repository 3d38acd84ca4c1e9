"""Image transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from benchmarks.coverage.classes.spec import Draw, Size, Spec


def both(number: float) -> Tensor:
    """The same number for both samples of the batch."""
    return torch.tensor([number, number])


def kept(length: int) -> Tensor:
    """Boolean mask of a batch of two texts, the second two tokens shorter."""
    return torch.arange(length) < torch.tensor([[length], [length - 2]])


def _grid_ids(side: int) -> Tensor:
    ids = torch.zeros(side * side, 3)
    ids[:, 1] = torch.arange(side * side) // side
    ids[:, 2] = torch.arange(side * side) % side
    return ids


def _latent(config: Any, draw: Draw, size: Size, side: int) -> Tensor:
    edge = 8 if size == "tiny" else side
    return draw(2, config.in_channels, edge, edge)


def _flux_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = (4, 5) if size == "tiny" else (64, 512)
    return {
        "hidden_states": draw(2, side * side, config.in_channels),
        "encoder_hidden_states": draw(2, text, config.joint_attention_dim),
        "pooled_projections": draw(2, config.pooled_projection_dim),
        "timestep": both(0.5),
        "guidance": both(3.5),
        "img_ids": _grid_ids(side),
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


def _dit_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": _latent(config, draw, size, 64),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([1, config.num_embeds_ada_norm]),
    }


DIT = Spec(
    name="DiTTransformer2DModel",
    tiny={
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
    },
    real={"out_channels": 8, "sample_size": 64},
    depth=lambda layers: {"num_layers": layers},
    inputs=_dit_inputs,
)


def _pixart_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    text = 7 if size == "tiny" else 300
    return {
        "hidden_states": _latent(config, draw, size, 128),
        "encoder_hidden_states": draw(2, text, config.caption_channels),
        "timestep": torch.tensor([500, 500]),
        "encoder_attention_mask": kept(text).long(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


_PIXART_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 8,
    "patch_size": 2,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "use_additional_conditions": False,
}


PIXART = Spec(
    name="PixArtTransformer2DModel",
    tiny=_PIXART_TINY,
    real={"caption_channels": 4096, "use_additional_conditions": False},
    depth=lambda layers: {"num_layers": layers},
    inputs=_pixart_inputs,
)


_ADA_NORM_SINGLE = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
}


TRANSFORMER_2D = Spec(
    name="Transformer2DModel",
    tiny={**_PIXART_TINY, **_ADA_NORM_SINGLE, "num_embeds_ada_norm": 1000},
    real={
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 128,
        "patch_size": 2,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "num_embeds_ada_norm": 1000,
        "use_additional_conditions": False,
        **_ADA_NORM_SINGLE,
    },
    depth=lambda layers: {"num_layers": layers},
    inputs=_pixart_inputs,
)


def _sd3_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": _latent(config, draw, size, 128),
        "encoder_hidden_states": draw(2, 5 if size == "tiny" else 333, config.joint_attention_dim),
        "pooled_projections": draw(2, config.pooled_projection_dim),
        "timestep": both(500.0),
    }


SD3 = Spec(
    name="SD3Transformer2DModel",
    tiny={
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "out_channels": 4,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
    },
    real={"num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384, "qk_norm": "rms_norm"},
    depth=lambda layers: {"num_layers": 2 * layers, "dual_attention_layers": tuple(range(layers))},
    inputs=_sd3_inputs,
)


def _packed(config: Any, draw: Draw, size: Size, text: int, text_channels: int) -> tuple[int, int, dict[str, Any]]:
    """(side of the token grid, text tokens, latents and masked text): how the Qwen family is called."""
    side, length = (4, 7) if size == "tiny" else (64, text)
    arguments = {
        "hidden_states": draw(2, side * side, config.in_channels),
        "encoder_hidden_states": draw(2, length, text_channels),
        "encoder_hidden_states_mask": kept(length),
        "timestep": both(0.5),
    }
    return side, length, arguments


def _nucleus_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, _, arguments = _packed(config, draw, size, 512, config.joint_attention_dim)
    return {**arguments, "img_shapes": [(1, side, side)] * 2}


@dataclass(frozen=True, kw_only=True)
class _Experts(Spec):
    """A class that leaves the weights of its experts unset, and whose grouped product can be traced in bfloat16 alone.

    The small model computes expert by expert, the class's default, in float32: its router picks by scores, and in bfloat16 rounding alone
    changes what it picks.
    """

    def model(self, size: Size = "tiny", layers: int = 2, seed: int = 0, device: str = "cpu") -> nn.Module:
        model = super().model(size, layers, seed, device)
        for name, parameter in model.named_parameters():
            if device != "meta" and ".experts." in name:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        return model.bfloat16() if size == "real" else model

    def arguments(self, model: nn.Module, size: Size = "tiny", seed: int = 0, device: str = "cpu") -> dict[str, Any]:
        given = super().arguments(model, size, seed, device)
        if size != "real":
            return given
        half: dict[str, Any] = pytree.tree_map_only(Tensor, lambda t: t.bfloat16() if t.is_floating_point() else t, given)
        return half


NUCLEUS = _Experts(
    name="NucleusMoEImageTransformer2DModel",
    tiny={
        "in_channels": 16,
        "out_channels": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "joint_attention_dim": 12,
        "axes_dims_rope": (4, 4, 8),
        "mlp_ratio": 8.0,
        "num_experts": 4,
        "moe_intermediate_dim": 16,
        "capacity_factors": 2.0,
        "dense_moe_strategy": "leave_first_three_blocks_dense",
    },
    real={
        "out_channels": 16,
        "num_key_value_heads": 4,
        "num_experts": 64,
        "capacity_factors": 2.0,
        "dense_moe_strategy": "leave_first_three_blocks_dense",
        "use_grouped_mm": True,
    },
    depth=lambda layers: {"num_layers": 3 + layers},
    inputs=_nucleus_inputs,
)


def _omnigen_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    text = 7 if size == "tiny" else 256
    latent = _latent(config, draw, size, 128)
    places = torch.arange(text + 1 + (latent.shape[-1] // config.patch_size) ** 2)
    rows, columns = places[:, None], places[None, :]
    padding = torch.tensor([0, 2])[:, None, None]
    seen = ((columns <= rows) | (rows > text)) & (columns >= padding)
    return {
        "hidden_states": latent,
        "timestep": both(0.5),
        "input_ids": torch.arange(2 * text).reshape(2, text),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": (seen | (rows < padding)).float(),
        "position_ids": (places - padding[:, 0]).clamp(min=0),
    }


OMNIGEN = Spec(
    name="OmniGenTransformer2DModel",
    tiny={
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "pad_token_id": 0,
        "vocab_size": 20,
        "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        "pos_embed_max_size": 8,
    },
    real={"rope_scaling": {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}},
    depth=lambda layers: {"num_layers": layers},
    inputs=_omnigen_inputs,
)


def _ovis_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = (4, 5) if size == "tiny" else (64, 256)
    return {
        "hidden_states": draw(2, side * side, config.in_channels),
        "encoder_hidden_states": draw(2, text, config.joint_attention_dim),
        "timestep": both(0.5),
        "img_ids": _grid_ids(side),
        "txt_ids": torch.arange(text)[:, None] * torch.tensor([0.0, 1.0, 1.0]),
    }


OVIS = Spec(
    name="OvisImageTransformer2DModel",
    tiny={
        "in_channels": 4,
        "out_channels": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (4, 4, 8),
    },
    depth=lambda layers: {"num_layers": layers, "num_single_layers": layers},
    inputs=_ovis_inputs,
)


def _prx_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    text = 7 if size == "tiny" else 256
    return {
        "hidden_states": _latent(config, draw, size, 128),
        "timestep": both(0.5),
        "encoder_hidden_states": draw(2, text, config.context_in_dim),
        "attention_mask": kept(text),
    }


PRX = Spec(
    name="PRXTransformer2DModel",
    tiny={"in_channels": 4, "context_in_dim": 12, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "axes_dim": [8, 8]},
    depth=lambda layers: {"depth": layers},
    inputs=_prx_inputs,
)


_QWEN_TINY = {"out_channels": 4, "attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}


def _qwen_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, _, arguments = _packed(config, draw, size, 512, config.joint_attention_dim)
    return {**arguments, "img_shapes": [[(1, side, side)]] * 2}


QWEN = Spec(
    name="QwenImageTransformer2DModel",
    tiny={**_QWEN_TINY, "in_channels": 16, "joint_attention_dim": 12},
    depth=lambda layers: {"num_layers": layers},
    inputs=_qwen_inputs,
)


def _qwen21_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text, arguments = _packed(config, draw, size, 512, config.context_in_dim)
    slots = torch.arange(text + side * side // 4) >= text
    return {**arguments, "img_shapes": [[(1, side, side)]] * 2, "img_mask": slots.expand(2, -1)}


QWEN21 = Spec(
    name="QwenImage21Transformer2DModel",
    tiny={**_QWEN_TINY, "in_channels": 4, "context_in_dim": 12},
    depth=lambda layers: {"num_layers": layers},
    inputs=_qwen21_inputs,
)


def _sana_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    text = 7 if size == "tiny" else 300
    return {
        "hidden_states": _latent(config, draw, size, 32),
        "encoder_hidden_states": draw(2, text, config.caption_channels),
        "timestep": both(500.0),
        "encoder_attention_mask": kept(text).long(),
    }


SANA = Spec(
    name="SanaTransformer2DModel",
    tiny={
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "sample_size": 8,
    },
    depth=lambda layers: {"num_layers": layers},
    inputs=_sana_inputs,
)


def _z_image_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = (8, 7) if size == "tiny" else (128, 256)
    return {
        "x": [draw(config.in_channels, 1, side, side) for _ in range(2)],
        "t": both(0.5),
        "cap_feats": [draw(text, config.cap_feat_dim), draw(text - 2, config.cap_feat_dim)],
    }


Z_IMAGE = Spec(
    name="ZImageTransformer2DModel",
    tiny={
        "in_channels": 4,
        "dim": 32,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 12,
        "axes_dims": [4, 4, 8],
        "axes_lens": [128, 32, 32],
    },
    depth=lambda layers: {"n_layers": layers, "n_refiner_layers": layers},
    inputs=_z_image_inputs,
    latent="x",
    timestep="t",
)


def _latte_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = (8, 7) if size == "tiny" else (64, 120)
    return {
        "hidden_states": draw(2, config.in_channels, config.video_length, side, side),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": draw(2, text, config.caption_channels),
    }


LATTE = Spec(
    name="LatteTransformer3DModel",
    tiny={
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "patch_size": 2,
        "caption_channels": 12,
        "video_length": 3,
        **_ADA_NORM_SINGLE,
    },
    real={
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 1152,
        "patch_size": 2,
        "caption_channels": 4096,
        **_ADA_NORM_SINGLE,
    },
    depth=lambda layers: {"num_layers": layers},
    inputs=_latte_inputs,
)


def _prior_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": draw(2, config.embedding_dim),
        "timestep": torch.tensor([500, 500]),
        "proj_embedding": draw(2, config.embedding_dim),
        "encoder_hidden_states": draw(2, config.num_embeddings, config.embedding_dim),
        "attention_mask": kept(config.num_embeddings),
    }


PRIOR = Spec(
    name="PriorTransformer",
    tiny={"num_attention_heads": 2, "attention_head_dim": 8, "embedding_dim": 12, "num_embeddings": 7},
    depth=lambda layers: {"num_layers": layers},
    inputs=_prior_inputs,
)


SPECS = [
    FLUX,
    DIT,
    PIXART,
    SD3,
    NUCLEUS,
    OMNIGEN,
    OVIS,
    PRX,
    QWEN,
    QWEN21,
    SANA,
    Z_IMAGE,
    LATTE,
    PRIOR,
    TRANSFORMER_2D,
]
