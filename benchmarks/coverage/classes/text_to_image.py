"""More text-to-image and editing transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from diffusers.models.unets.unet_dreamlite import DreamLiteAttnProcessor2_0
from torch import Tensor, nn

from benchmarks.coverage.classes.spec import Draw, Size, Spec

Inputs = Callable[[Any, Draw, Size], dict[str, Any]]


HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}


IMAGE_4 = {"in_channels": 4, "out_channels": 4}


FLUX_WIDTH = {**HEADS, "in_channels": 4, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8)}


class _DreamLite(Spec):
    """DreamLite's UNet installs the attention processor."""

    def model(self, size: Size = "tiny", layers: int = 2, seed: int = 0, device: str = "cpu") -> nn.Module:
        """Build the model."""
        model = super().model(size, layers, seed, device)
        for module in model.modules():
            if isinstance(module, Attention):
                module.set_processor(DreamLiteAttnProcessor2_0())
        return model


def _counts(size: Size, side: int, text: int) -> tuple[int, int]:
    """Side of the latent's grid and number of text tokens."""
    return (side, text) if size == "real" else (8 if side == 128 else 4, 5)


def _both(value: float) -> Tensor:
    return torch.tensor([value, value])


def _grid(side: int, axes: int = 3) -> Tensor:
    """Positions of a square image's tokens: row and column follow the leading axis."""
    ids = torch.zeros(side * side, axes)
    ids[:, 1] = torch.arange(side * side) // side
    ids[:, 2] = torch.arange(side * side) % side
    return ids


def _mask(text: int) -> Tensor:
    """A full prompt and one padded on the right."""
    mask = torch.ones(2, text, dtype=torch.int64)
    mask[1, text - 2 :] = 0
    return mask


def _stacks(layers: int) -> dict[str, int]:
    return {"num_layers": layers, "num_single_layers": layers}


def _packed(config: Any, draw: Draw, side: int, text: int, timestep: float, axes: int = 3) -> dict[str, Any]:
    """Packed image tokens with position ids, as in FLUX's pipelines."""
    return {
        "hidden_states": draw(2, side * side, config.in_channels),
        "encoder_hidden_states": draw(2, text, config.joint_attention_dim),
        "timestep": _both(timestep),
        "img_ids": _grid(side, axes),
        "txt_ids": torch.zeros(text, axes),
    }


def _image(config: Any, draw: Draw, side: int) -> Tensor:
    return draw(2, config.in_channels, side, side)


def _bria(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return _packed(config, draw, *_counts(size, 64, 128), timestep=500.0)


def _bria_fibo(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    layers = config.num_layers + config.num_single_layers
    return {
        **_packed(config, draw, side, text, timestep=500.0),
        "text_encoder_layers": [draw(2, text, config.text_encoder_dim) for _ in range(layers)],
    }


def _bria_fibo_2(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 128, 512)
    bundles = 1 + len(config.injection_layer_ids)
    return {
        "hidden_states": _image(config, draw, side),
        "timestep": _both(0.5),
        "encoder_hidden_states": draw(2, bundles, text, config.cap_feat_dim),
        "encoder_attention_mask": None,
    }


def _chroma(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    mask = torch.cat([_mask(text).float(), torch.ones(2, side * side)], dim=1)
    return {**_packed(config, draw, side, text, timestep=0.5), "attention_mask": mask}


def _longcat(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    given = _packed(config, draw, side, text, timestep=0.5)
    given["img_ids"] = given["img_ids"] + torch.tensor([1.0, text, text])
    given["txt_ids"][:, 1:] = torch.arange(text)[:, None]
    return {**given, "guidance": None}


def _flux_3(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    given = _packed(config, draw, side, text, timestep=0.5, axes=4)
    given["txt_ids"][:, 3] = torch.arange(text)
    return given


def _flux_2(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    given = _flux_3(config, draw, size)
    for name in ("img_ids", "txt_ids"):
        given[name] = given[name].long().repeat(2, 1, 1)
    return {**given, "guidance": _both(4.0)}


def _aura_flow(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 128, 256)
    return {
        "hidden_states": _image(config, draw, side),
        "encoder_hidden_states": draw(2, text, config.joint_attention_dim),
        "timestep": _both(0.5),
    }


def _sized(config: Any, draw: Draw, side: int, text: int, timestep: Tensor) -> dict[str, Any]:
    """An image with its size and crop, as in CogView's pipelines."""
    return {
        "hidden_states": _image(config, draw, side),
        "encoder_hidden_states": draw(2, text, config.text_embed_dim),
        "timestep": timestep,
        "target_size": torch.full((2, 2), 8.0 * side),
        "crop_coords": torch.zeros(2, 2),
    }


def _cog_view(timestep: Tensor) -> Inputs:
    def inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
        given = _sized(config, draw, *_counts(size, 128, 224), timestep)
        return {**given, "original_size": given["target_size"]}

    return inputs


def _glm_image(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 128, 256)
    prior = torch.arange(2 * (side // 2) ** 2).reshape(2, -1) % config.prior_vq_quantizer_codebook_size
    return {
        **_sized(config, draw, side, text, _both(499.0)),
        "prior_token_id": prior,
        "prior_token_drop": torch.zeros_like(prior, dtype=torch.bool),
    }


def _dream_lite(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 32, 256)
    return {
        "hidden_states": _image(config, draw, side),
        "encoder_hidden_states": draw(2, text, config.cross_attention_dim),
        "encoder_attention_mask": _mask(text),
        "timestep": _both(500.0),
    }


def _ernie(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 256)
    return {
        "hidden_states": _image(config, draw, side),
        "timestep": _both(500.0),
        "text_bth": draw(2, text, config.text_in_dim),
        "text_lens": _mask(text).sum(dim=1),
    }


def _hi_dream(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 128, 128)
    return {
        "hidden_states": _image(config, draw, side),
        "timesteps": _both(500.0),
        "encoder_hidden_states_t5": draw(2, text, config.caption_channels[0]),
        "encoder_hidden_states_llama3": draw(max(config.llama_layers) + 1, 2, text, config.caption_channels[1]),
        "pooled_embeds": draw(2, config.text_emb_dim),
    }


def _hunyuan_dit(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, _ = _counts(size, 128, 0)
    grid = side // config.patch_size
    return {
        "hidden_states": _image(config, draw, side),
        "timestep": _both(500.0),
        "encoder_hidden_states": draw(2, config.text_len, config.cross_attention_dim),
        "text_embedding_mask": _mask(config.text_len),
        "encoder_hidden_states_t5": draw(2, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": _mask(config.text_len_t5),
        "image_meta_size": torch.tensor([[8.0 * side] * 4 + [0.0] * 2] * 2),
        "style": torch.zeros(2, dtype=torch.int64),
        "image_rotary_emb": get_2d_rotary_pos_embed(
            config.attention_head_dim, ((0, 0), (grid, grid)), (grid, grid), device=torch.device("cpu"), output_type="pt"
        ),
    }


def _hunyuan_image(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    glyphs = 3 if size == "tiny" else 128
    return {
        "hidden_states": _image(config, draw, side),
        "timestep": _both(500.0),
        "encoder_hidden_states": draw(2, text, config.text_embed_dim),
        "encoder_attention_mask": _mask(text),
        "encoder_hidden_states_2": draw(2, glyphs, config.text_embed_2_dim),
        "encoder_attention_mask_2": _mask(glyphs),
    }


def _ideogram(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    pixels, padded = side * side, _mask(text).flip(1)
    position = torch.cat([padded.cumsum(1) - padded, 65536 + torch.zeros(2, pixels, dtype=torch.int64)], dim=1)
    position = position[..., None].repeat(1, 1, 3)
    position[:, text:] += _grid(side).long()
    return {
        "hidden_states": torch.cat([0 * draw(2, text, config.in_channels), draw(2, pixels, config.in_channels)], dim=1),
        "timestep": _both(0.5),
        "encoder_hidden_states": draw(2, text + pixels, config.llm_features_dim),
        "position_ids": position,
        "segment_ids": torch.cat([2 * padded - 1, torch.ones(2, pixels, dtype=torch.int64)], dim=1),
        "indicator": torch.cat([3 * padded, torch.full((2, pixels), 2)], dim=1),
    }


def _joy_image(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 128, 512)
    return {
        "hidden_states": draw(2, 2, config.in_channels, 1, side, side),
        "timestep": _both(500.0),
        "encoder_hidden_states": draw(2, text, config.text_dim),
    }


def _joy_image_plus(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    frame, smaller = (1, side, side), (1, side, side // 2)
    return {
        "hidden_states": draw(2, 2 * side * side, config.in_channels, *config.patch_size),
        "timestep": _both(500.0),
        "encoder_hidden_states": draw(2, text, config.text_dim),
        "encoder_hidden_states_mask": _mask(text),
        "shape_list": [[frame, frame], [frame, smaller]],
    }


def _krea(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 64, 512)
    return {
        "hidden_states": draw(2, side * side, config.in_channels),
        "encoder_hidden_states": draw(2, text, config.num_text_layers, config.text_hidden_dim),
        "timestep": _both(0.5),
        "position_ids": torch.cat([torch.zeros(text, 3), _grid(side)]),
        "encoder_attention_mask": _mask(text).bool(),
    }


def _lumina_2(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 128, 256)
    return {
        "hidden_states": _image(config, draw, side),
        "timestep": _both(0.5),
        "encoder_hidden_states": draw(2, text, config.cap_feat_dim),
        "encoder_attention_mask": _mask(text),
    }


def _lumina_next(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    side, text = _counts(size, 128, 256)
    grid = 16 if size == "tiny" else 384
    return {
        "hidden_states": _image(config, draw, side),
        "timestep": _both(0.5),
        "encoder_hidden_states": draw(2, text, config.cross_attention_dim),
        "encoder_mask": _mask(text),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(config.hidden_size // config.num_attention_heads, grid, grid),
        "cross_attention_kwargs": {"base_sequence_length": (side // 2) ** 2},
    }


JOY = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 32,
    "mlp_width_ratio": 2.0,
    "rope_dim_list": [4, 6, 6],
}


JOY_REAL = {"hidden_size": 4096, "num_attention_heads": 32}


SIZED = {**HEADS, **IMAGE_4, "text_embed_dim": 32, "time_embed_dim": 32, "condition_dim": 8}


SPECS = [
    Spec(
        name="AuraFlowTransformer2DModel",
        tiny={**HEADS, **IMAGE_4, "sample_size": 8, "joint_attention_dim": 32, "caption_projection_dim": 32, "pos_embed_max_size": 64},
        real={"pos_embed_max_size": 9216},
        depth=lambda layers: {"num_mmdit_layers": layers, "num_single_dit_layers": layers},
        inputs=_aura_flow,
    ),
    Spec(
        name="BriaFibo2Transformer2DModel",
        tiny={
            "in_channels": 4,
            "dim": 32,
            "n_heads": 2,
            "cap_feat_dim": 32,
            "min_num_gist_tokens": 4,
            "max_num_gist_tokens": 8,
            "gist_step": 2,
            "gist_min_text_len": 4,
            "gist_max_text_len": 8,
            "axes_dims": (4, 6, 6),
            "axes_lens": (32, 16, 16),
        },
        depth=lambda layers: {
            "n_layers": 2 * layers,
            "n_refiner_layers": layers,
            "perceiver_num_layers": layers,
            "injection_layer_ids": tuple(range(1, 2 * layers, 2)),
        },
        inputs=_bria_fibo_2,
    ),
    Spec(
        name="BriaFiboTransformer2DModel",
        tiny={**FLUX_WIDTH, "text_encoder_dim": 24},
        real={"in_channels": 48},
        depth=_stacks,
        inputs=_bria_fibo,
    ),
    Spec(name="BriaTransformer2DModel", tiny=FLUX_WIDTH, real={"in_channels": 16}, depth=_stacks, inputs=_bria),
    Spec(
        name="ChromaTransformer2DModel",
        tiny={**FLUX_WIDTH, "approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 2},
        depth=_stacks,
        inputs=_chroma,
    ),
    Spec(
        name="CogView3PlusTransformer2DModel",
        tiny={**SIZED, "pos_embed_max_size": 8, "sample_size": 8},
        depth=lambda layers: {"num_layers": layers},
        inputs=_cog_view(torch.tensor([500, 500])),
    ),
    Spec(
        name="CogView4Transformer2DModel",
        tiny={**SIZED, "sample_size": 8},
        real={"attention_head_dim": 128, "num_attention_heads": 32},
        depth=lambda layers: {"num_layers": layers},
        inputs=_cog_view(_both(500.0)),
    ),
    _DreamLite(
        name="DreamLiteTransformer2DModel",
        tiny={
            **HEADS,
            "in_channels": 32,
            "norm_num_groups": 4,
            "cross_attention_dim": 32,
            "qk_norm": "rms_norm",
            "num_kv_heads": 1,
            "ff_mult": 2,
        },
        real={
            "attention_head_dim": 64,
            "num_attention_heads": 20,
            "in_channels": 1280,
            "cross_attention_dim": 2048,
            "qk_norm": "rms_norm",
            "num_kv_heads": 1,
            "ff_mult": 6,
        },
        depth=lambda layers: {"num_layers": layers},
        inputs=_dream_lite,
    ),
    Spec(
        name="ErnieImageTransformer2DModel",
        tiny={
            **IMAGE_4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "ffn_hidden_size": 64,
            "text_in_dim": 24,
            "rope_axes_dim": (4, 6, 6),
        },
        depth=lambda layers: {"num_layers": layers},
        inputs=_ernie,
    ),
    Spec(
        name="Flux2Transformer2DModel",
        tiny={**FLUX_WIDTH, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 32},
        depth=_stacks,
        inputs=_flux_2,
    ),
    Spec(
        name="Flux3Transformer2DModel",
        tiny={**FLUX_WIDTH, "axes_dims_rope": (4, 4, 4, 4), "cond_in_channels": 4, "timestep_channels": 32},
        depth=_stacks,
        inputs=_flux_3,
    ),
    Spec(
        name="GlmImageTransformer2DModel",
        tiny={**SIZED, "prior_vq_quantizer_codebook_size": 64},
        real={"attention_head_dim": 128, "num_attention_heads": 32},
        depth=lambda layers: {"num_layers": layers},
        inputs=_glm_image,
    ),
    Spec(
        name="HiDreamImageTransformer2DModel",
        tiny={
            **HEADS,
            **IMAGE_4,
            "patch_size": 2,
            "caption_channels": [24, 32],
            "text_emb_dim": 32,
            "axes_dims_rope": (4, 6, 6),
            "max_resolution": (8, 8),
        },
        real={
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "caption_channels": [4096, 4096],
            "axes_dims_rope": (64, 32, 32),
        },
        depth=lambda layers: {**_stacks(layers), "llama_layers": list(range(2 * layers))},
        inputs=_hi_dream,
        timestep="timesteps",
    ),
    Spec(
        name="HunyuanDiT2DModel",
        tiny={
            **HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 32,
            "mlp_ratio": 2.0,
            "cross_attention_dim": 32,
            "cross_attention_dim_t5": 32,
            "pooled_projection_dim": 32,
            "text_len": 5,
            "text_len_t5": 6,
        },
        real={"in_channels": 4, "patch_size": 2, "sample_size": 128, "hidden_size": 1408, "mlp_ratio": 4.3637},
        depth=lambda layers: {"num_layers": 2 * layers + 2},
        inputs=_hunyuan_dit,
    ),
    Spec(
        name="HunyuanImageTransformer2DModel",
        tiny={**HEADS, **IMAGE_4, "mlp_ratio": 2.0, "text_embed_dim": 32, "text_embed_2_dim": 24, "rope_axes_dim": (8, 8)},
        real={"text_embed_2_dim": 1472},
        depth=lambda layers: {**_stacks(layers), "num_refiner_layers": layers},
        inputs=_hunyuan_image,
    ),
    Spec(
        name="Ideogram4Transformer2DModel",
        tiny={
            **HEADS,
            "in_channels": 4,
            "intermediate_size": 64,
            "adaln_dim": 16,
            "llm_features_dim": 32,
            "mrope_section": (4, 2, 2),
        },
        depth=lambda layers: {"num_layers": layers},
        inputs=_ideogram,
    ),
    Spec(
        name="JoyImageEditTransformer3DModel",
        tiny=JOY,
        real=JOY_REAL,
        depth=lambda layers: {"num_layers": layers},
        inputs=_joy_image,
    ),
    Spec(
        name="JoyImageEditPlusTransformer3DModel",
        tiny=JOY,
        real=JOY_REAL,
        depth=lambda layers: {"num_layers": layers},
        inputs=_joy_image_plus,
    ),
    Spec(
        name="Krea2Transformer2DModel",
        tiny={
            **HEADS,
            "in_channels": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 64,
            "timestep_embed_dim": 32,
            "text_hidden_dim": 32,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 64,
            "axes_dims_rope": (4, 6, 6),
        },
        depth=lambda layers: {
            "num_layers": layers,
            "num_layerwise_text_blocks": layers,
            "num_refiner_text_blocks": layers,
        },
        inputs=_krea,
    ),
    Spec(name="LongCatImageTransformer2DModel", tiny=FLUX_WIDTH, depth=_stacks, inputs=_longcat),
    Spec(
        name="Lumina2Transformer2DModel",
        tiny={
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "axes_dim_rope": (4, 6, 6),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 24,
        },
        real={"cap_feat_dim": 2304},
        depth=lambda layers: {"num_layers": layers, "num_refiner_layers": layers},
        inputs=_lumina_2,
    ),
    Spec(
        name="LuminaNextDiT2DModel",
        tiny={
            "sample_size": 8,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "cross_attention_dim": 32,
        },
        real={"num_kv_heads": 8},
        depth=lambda layers: {"num_layers": layers},
        inputs=_lumina_next,
    ),
]
