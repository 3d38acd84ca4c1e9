"""Video transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.coverage.classes.spec import Draw, Size, Spec
from benchmarks.coverage.classes.trees import register

Grid = tuple[int, int, int]
"""Latent frames, height and width."""


def _layers(layers: int) -> dict[str, int]:
    return {"num_layers": layers}


def _two_stacks(layers: int) -> dict[str, int]:
    return {"num_layers": layers, "num_single_layers": layers}


def _steps(value: float) -> Tensor:
    return torch.full((2,), value)


def _mask(length: int) -> Tensor:
    """Mask of two texts, the second of them two tokens shorter."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -2:] = 0
    return mask


def _conditioned(draw: Draw, text: int, width: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": draw(2, text, width), "encoder_attention_mask": _mask(text)}


def _allegro_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    (frames, height, width), text = ((2, 4, 4), 6) if size == "tiny" else ((22, 90, 160), 512)
    rows, columns = height // config.patch_size, width // config.patch_size
    scale = (config.interpolation_scale_t, config.interpolation_scale_h, config.interpolation_scale_w)
    *frequencies, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(
        config.attention_head_dim, ((0, 0), (rows, columns)), (rows, columns), frames, scale
    )
    position = torch.cartesian_prod(grid_t.long(), grid_h.long(), grid_w.long())
    return {
        "hidden_states": draw(2, config.in_channels, frames, height, width),
        "timestep": torch.tensor([500, 500]),
        "image_rotary_emb": (tuple(frequencies), tuple(position.T.reshape(3, 1, -1).contiguous())),
        **_conditioned(draw, text, config.caption_channels),
    }


def _cogvideox_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, text = (2, 6) if size == "tiny" else (13, config.max_text_seq_length)
    rows, columns = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    rotary = get_3d_rotary_pos_embed(config.attention_head_dim, ((0, 0), (rows, columns)), (rows, columns), frames)
    return {
        "hidden_states": draw(2, frames, config.in_channels, config.sample_height, config.sample_width),
        "encoder_hidden_states": draw(2, text, config.text_embed_dim),
        "timestep": torch.tensor([500, 500]),
        "image_rotary_emb": rotary,
    }


def _consisid_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    tokens = 5 if size == "tiny" else 577
    return {
        **_cogvideox_inputs(config, draw, size),
        "id_cond": draw(1, config.LFE_id_dim),
        "id_vit_hidden": [draw(1, tokens, config.LFE_vit_dim) for _ in range(config.LFE_num_scale)],
    }


_COGVIDEOX_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 16,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": 6,
    "use_rotary_positional_embeddings": True,
}


def _cosmos_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    (frames, height, width), text = ((2, 4, 4), 6) if size == "tiny" else ((16, 88, 160), 512)
    return {
        "hidden_states": draw(2, config.in_channels, frames, height, width),
        "timestep": _steps(0.5),
        "encoder_hidden_states": draw(2, text, config.text_embed_dim),
        "fps": 30,
        "padding_mask": torch.zeros(1, 1, 8 * height, 8 * width),
    }


def _easyanimate_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    (frames, height, width), text = ((2, 4, 4), 6) if size == "tiny" else ((13, 60, 90), 256)
    return {
        "hidden_states": draw(2, config.in_channels, frames, height, width),
        "timestep": _steps(500.0),
        "encoder_hidden_states": draw(2, text, config.text_embed_dim),
    }


def _hunyuan_call(config: Any, draw: Draw, grid: Grid, text: int) -> dict[str, Any]:
    return {
        "hidden_states": draw(2, config.in_channels, *grid),
        "timestep": _steps(500.0),
        "pooled_projections": draw(2, config.pooled_projection_dim),
        "guidance": _steps(6000.0),
        **_conditioned(draw, text, config.text_embed_dim),
    }


def _hunyuan_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return _hunyuan_call(config, draw, *(((2, 4, 4), 6) if size == "tiny" else ((21, 60, 104), 256)))


def _framepack_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    grid, text, image = ((2, 8, 8), 6, 5) if size == "tiny" else ((9, 60, 104), 256, 729)
    history = (1, grid[0], 1, 2, 16)
    first, active, once, twice, four = torch.arange(sum(history)).split(history)
    clean = torch.cat([first, once])
    return {
        **_hunyuan_call(config, draw, grid, text),
        "image_embeds": draw(2, image, config.image_proj_dim),
        "indices_latents": active,
        **{
            f"{prefix}_{name}": value
            for name, indices in (("clean", clean), ("history_2x", twice), ("history_4x", four))
            for prefix, value in (
                ("latents", draw(2, config.in_channels, len(indices), *grid[1:])),
                ("indices_latents", indices),
            )
        },
    }


_HUNYUAN_TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_embed_dim": 16,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (4, 6, 6),
}


def _hunyuan15_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    grid, text, glyphs, image = ((2, 4, 4), 6, 5, 5) if size == "tiny" else ((21, 30, 52), 1000, 256, 729)
    return {
        "hidden_states": draw(2, config.in_channels, *grid),
        "timestep": _steps(500.0),
        "encoder_hidden_states_2": draw(2, glyphs, config.text_embed_2_dim),
        "encoder_attention_mask_2": _mask(glyphs),
        "image_embeds": torch.zeros(2, image, config.image_embed_dim),
        **_conditioned(draw, text, config.text_embed_dim),
    }


def _ltx_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    (frames, height, width), text = ((2, 2, 4), 6) if size == "tiny" else ((21, 16, 22), 128)
    return {
        "hidden_states": draw(2, frames * height * width, config.in_channels),
        "timestep": _steps(500.0),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
        **_conditioned(draw, text, config.caption_channels),
    }


_LTX2_TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "caption_channels": 16,
    "rope_type": "split",
}


def _ltx2_rope(config: Any, modality: str) -> Any:
    """Rotary embedding of the video or audio tokens, as both classes that share LTX-2's weights build it."""
    from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed

    return LTX2AudioVideoRotaryPosEmbed(
        dim=config.num_attention_heads * config.attention_head_dim,
        base_num_frames=config.pos_embed_max_pos,
        base_height=config.base_height,
        base_width=config.base_width,
        scale_factors=config.vae_scale_factors if modality == "video" else [config.audio_scale_factor],
        theta=config.rope_theta,
        causal_offset=config.causal_offset,
        modality=modality,
        double_precision=config.rope_double_precision,
        rope_type=config.rope_type,
        num_attention_heads=config.num_attention_heads,
    )


def _ltx2_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    (frames, height, width), sound, text = ((2, 2, 4), 5, 6) if size == "tiny" else ((16, 16, 24), 126, 1024)
    timestep = _steps(500.0)
    mask = torch.ones(2, text, dtype=torch.long)
    return {
        "hidden_states": draw(2, frames * height * width, config.in_channels),
        "audio_hidden_states": draw(2, sound, config.audio_in_channels),
        "encoder_hidden_states": draw(2, text, config.caption_channels),
        "audio_encoder_hidden_states": draw(2, text, config.caption_channels),
        "timestep": timestep,
        "sigma": timestep,
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": 24.0,
        "audio_num_frames": sound,
        "video_coords": _ltx2_rope(config, "video").prepare_video_coords(2, frames, height, width, torch.device("cpu"), fps=24.0),
        "audio_coords": _ltx2_rope(config, "audio").prepare_audio_coords(2, sound, torch.device("cpu")),
        "isolate_modalities": False,
        "use_cross_timestep": False,
    }


def _refiner_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache, SanaWMRefinerKVLayerCache

    register(SanaWMRefinerKVCache, SanaWMRefinerKVLayerCache)
    (frames, height, width), text, past = ((2, 2, 4), 6, 2) if size == "tiny" else ((3, 22, 40), 1024, 8)
    rope, area, channels = _ltx2_rope(config, "video"), height * width, config.num_attention_heads * config.attention_head_dim
    device = draw(0).device

    def rotary(first: int, count: int) -> tuple[Tensor, Tensor]:
        coords = rope.prepare_video_coords(2, first + count, height, width, device, fps=16.0)
        cos, sin = rope(coords[:, :, first * area :], device=device)
        return cos, sin

    cache = SanaWMRefinerKVCache(config.num_layers)
    cache.sink_pe = rotary(0, 1)
    for layer in cache.layer_caches:
        layer.store_sink(draw(2, area, channels), draw(2, area, channels))
        layer.store_history(draw(2, past * area, channels), draw(2, past * area, channels))
    return {
        "hidden_states": draw(2, frames * area, config.in_channels),
        "timestep": torch.full((2, frames * area), 500.0),
        "video_rotary_emb": rotary(1 + past, frames),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
        **_conditioned(draw, text, config.caption_channels),
    }


def _mochi_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    grid, text = ((2, 4, 4), 6) if size == "tiny" else ((14, 60, 106), config.max_sequence_length)
    return {
        "hidden_states": draw(2, config.in_channels, *grid),
        "timestep": _steps(500.0),
        **_conditioned(draw, text, config.text_embed_dim),
        "encoder_attention_mask": _mask(text).bool(),
    }


def _clip(config: Any, draw: Draw, size: Size, text: int, width: int) -> dict[str, Any]:
    """Latent frames of 480p and a text of so many tokens with features of that width."""
    grid, words = ((2, 4, 4), 6) if size == "tiny" else ((21, 60, 104), text)
    return {"hidden_states": draw(2, config.in_channels, *grid), "timestep": _steps(500.0), **_conditioned(draw, words, width)}


def _motif_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return _clip(config, draw, size, 512, config.text_embed_dim)


def _minimax_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    (frames, height, width), text, sound = ((2, 4, 4), 6, 4) if size == "tiny" else ((21, 60, 104), 512, 400)
    _, p, _ = config.patch_size
    rows, columns = height // p, width // p
    video, total = frames * rows * columns, text + sound + frames * rows * columns
    text_rows, audio_rows, video_rows = torch.arange(total).split([text, sound, video])
    position = torch.zeros(total, 3, dtype=torch.float64)
    position[:text] = torch.arange(text)[:, None].double()
    position[text : text + sound, 0] = text + torch.arange(sound)
    position[text + sound :] = torch.cartesian_prod(text + torch.arange(frames), torch.arange(rows), torch.arange(columns)).double()
    return {
        "hidden_states": draw(2, video, config.in_channels * p * p),
        "audio_hidden_states": draw(2, sound, config.audio_in_channels),
        "encoder_hidden_states": draw(2, text, config.text_dim),
        "timestep": torch.tensor([0.4, 0.5]),
        "timestep_indices": torch.tensor([1] * text + [0] * sound + [1] * video),
        "token_tags": torch.tensor([1] * text + [2] * sound + [0] * video),
        "position_ids": position,
        "video_indices": video_rows,
        "audio_indices": audio_rows,
        "text_indices": text_rows,
    }


def _sana_video_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return _clip(config, draw, size, 300, config.caption_channels)


def _sana_wm_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    (frames, height, width), text = ((2, 4, 4), 6) if size == "tiny" else ((21, 22, 40), 300)
    pose = torch.eye(4).repeat(frames, 1, 1)
    pose[:, 2, 3] = 0.05 * torch.arange(frames)
    lens = torch.tensor([0.8 * width, 0.8 * width, width / 2, height / 2])
    camera = torch.cat([pose.flatten(1), lens.expand(frames, 4)], dim=1)
    timestep = torch.full((2, 1, frames), 500.0)
    timestep[:, :, 0] = 0
    return {
        "hidden_states": draw(2, config.in_channels, frames, height, width),
        "timestep": timestep,
        "encoder_hidden_states": draw(2, 1, text, config.caption_channels),
        "data_info": {"img_hw": torch.tensor([[32.0 * height, 32.0 * width]])},
        "mask": _mask(text),
        "camera_conditions": camera.repeat(2, 1, 1),
        "chunk_plucker": draw(2, config.chunk_plucker_channels, frames, height, width),
    }


SPECS = [
    Spec(
        name="AllegroTransformer3DModel",
        tiny={
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_height": 4,
            "sample_width": 4,
            "sample_frames": 2,
        },
        depth=_layers,
        inputs=_allegro_inputs,
    ),
    Spec(
        name="CogVideoXTransformer3DModel",
        tiny=_COGVIDEOX_TINY,
        real={"num_attention_heads": 48, "use_rotary_positional_embeddings": True},
        depth=_layers,
        inputs=_cogvideox_inputs,
    ),
    Spec(
        name="ConsisIDTransformer3DModel",
        tiny={
            **_COGVIDEOX_TINY,
            "in_channels": 8,
            "use_learned_positional_embeddings": True,
            "is_train_face": True,
            "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2,
            "LFE_id_dim": 16,
            "LFE_vit_dim": 16,
            "LFE_depth": 4,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 2,
            "LFE_num_querie": 3,
            "LFE_output_dim": 21,
            "LFE_num_scale": 2,
        },
        real={
            "num_attention_heads": 48,
            "in_channels": 32,
            "use_rotary_positional_embeddings": True,
            "use_learned_positional_embeddings": True,
            "is_train_face": True,
        },
        depth=lambda layers: {"num_layers": 2 * layers},
        inputs=_consisid_inputs,
    ),
    Spec(
        name="CosmosTransformer3DModel",
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 8, 8),
            "concat_padding_mask": False,
        },
        real={"concat_padding_mask": False},
        depth=_layers,
        inputs=_cosmos_inputs,
    ),
    Spec(
        name="EasyAnimateTransformer3DModel",
        tiny={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "time_embed_dim": 16,
            "add_norm_text_encoder": True,
            "text_embed_dim": 16,
        },
        real={"in_channels": 16, "out_channels": 16, "patch_size": 2, "add_norm_text_encoder": True},
        depth=_layers,
        inputs=_easyanimate_inputs,
    ),
    Spec(
        name="HunyuanVideoTransformer3DModel",
        tiny=_HUNYUAN_TINY,
        depth=_two_stacks,
        inputs=_hunyuan_inputs,
    ),
    Spec(
        name="HunyuanVideoFramepackTransformer3DModel",
        tiny={**_HUNYUAN_TINY, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        real={"has_image_proj": True, "has_clean_x_embedder": True},
        depth=_two_stacks,
        inputs=_framepack_inputs,
    ),
    Spec(
        name="HunyuanVideo15Transformer3DModel",
        tiny={
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "text_embed_dim": 16,
            "text_embed_2_dim": 16,
            "image_embed_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        depth=_layers,
        inputs=_hunyuan15_inputs,
    ),
    Spec(
        name="LTXVideoTransformer3DModel",
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
        },
        depth=_layers,
        inputs=_ltx_inputs,
    ),
    Spec(
        name="LTX2VideoTransformer3DModel",
        tiny=_LTX2_TINY,
        real={"rope_type": "split"},
        depth=_layers,
        inputs=_ltx2_inputs,
    ),
    Spec(
        name="MochiTransformer3DModel",
        tiny={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "pooled_projection_dim": 24,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "max_sequence_length": 6,
        },
        depth=_layers,
        inputs=_mochi_inputs,
    ),
    Spec(
        name="MotifVideoTransformer3DModel",
        tiny={
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "text_embed_dim": 16,
            "rope_axes_dim": (4, 6, 6),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        real={
            "num_attention_heads": 12,
            "text_embed_dim": 2560,
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        depth=lambda layers: {"num_layers": layers, "num_single_layers": 2 * layers, "num_decoder_layers": layers},
        inputs=_motif_inputs,
    ),
    Spec(
        name="MiniMaxH3Transformer3DModel",
        tiny={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 32,
            "ffn_dim": 48,
            "in_channels": 4,
            "audio_in_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        depth=_layers,
        inputs=_minimax_inputs,
    ),
    Spec(
        name="SanaVideoTransformer3DModel",
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
        },
        depth=_layers,
        inputs=_sana_video_inputs,
    ),
    Spec(
        name="SanaWMTransformer3DModel",
        tiny={
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "linear_head_dim": 16,
            "caption_channels": 16,
        },
        depth=lambda layers: {"num_layers": 2 * layers, "softmax_every_n": 2},
        inputs=_sana_wm_inputs,
    ),
    Spec(
        name="SanaWMLTX2RefinerTransformer3DModel",
        tiny=_LTX2_TINY,
        real={"rope_type": "split"},
        depth=_layers,
        inputs=_refiner_inputs,
    ),
]
