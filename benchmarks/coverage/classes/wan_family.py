"""Video transformers: Wan, its descendants, Helios and Kandinsky."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.coverage.classes.spec import Draw, Size, Spec

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 12}


_TINY = {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 32}


_IMAGE = {**_TINY, "in_channels": 12, "image_dim": 10, "added_kv_proj_dim": 24}


def _depth(layers: int) -> dict[str, Any]:
    return {"num_layers": layers}


def _grid(size: Size) -> tuple[int, int, int]:
    """Latent frames, height and width: 480p and 81 frames in practice."""
    return (2, 8, 8) if size == "tiny" else (21, 60, 104)


def _timestep(*shape: int) -> Tensor:
    return torch.full(shape or (2,), 500)


def _call(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": draw(2, config.in_channels, *_grid(size)),
        "timestep": _timestep(),
        "encoder_hidden_states": draw(2, 5 if size == "tiny" else 512, config.text_dim),
    }


def _image_call(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """Cross-attention takes the last 512 tokens for the text, whatever the text's length: 512 even in the small form."""
    return {
        **_call(config, draw, size),
        "encoder_hidden_states": draw(2, 512, config.text_dim),
        "encoder_hidden_states_image": draw(2, 5 if size == "tiny" else 257, config.image_dim),
    }


WAN = Spec(name="WanTransformer3DModel", tiny=_TINY, depth=_depth, inputs=_call)


def _vace_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    return {
        **_call(config, draw, size),
        "control_hidden_states": draw(2, config.vace_in_channels, *_grid(size)),
        "control_hidden_states_scale": torch.ones(len(config.vace_layers)),
    }


VACE = Spec(
    name="WanVACETransformer3DModel",
    tiny={**_TINY, "vace_in_channels": 12},
    depth=lambda layers: {"num_layers": layers, "vace_layers": list(range(layers))},
    inputs=_vace_inputs,
)


def _animate_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    frames, height, width = _grid(size)
    side = config.motion_encoder_size
    return {
        **_image_call(config, draw, size),
        "hidden_states": draw(2, config.in_channels, frames + 1, height, width),
        "pose_hidden_states": draw(2, config.latent_channels, frames, height, width),
        "face_pixel_values": draw(2, 3, 4 * (frames - 1) + 1, side, side),
    }


ANIMATE = Spec(
    name="WanAnimateTransformer3DModel",
    tiny={
        **_IMAGE,
        "latent_channels": 4,
        "motion_encoder_channel_sizes": {"4": 4, "8": 4, "16": 4},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "face_encoder_num_heads": 2,
    },
    real={"added_kv_proj_dim": 5120},
    depth=lambda layers: {"num_layers": layers, "inject_face_latents_blocks": 1},
    inputs=_animate_inputs,
)


def _animate_2_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """A denoising step after the reference pass, whose keys and values lie in the cache."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    frames, height, width = _grid(size)
    rows, columns = height // 2, width // 2
    cache = WanAnimate2KVCache(config.num_layers)
    for layer in cache.layer_caches:
        layer.store(*(draw(2, frames * rows * columns, config.num_heads, config.dim // config.num_heads) for _ in range(2)))
    given = [(frames + 1, height, width)] * 2
    return {
        "hidden_states": [draw(config.out_dim, *shape) for shape in given],
        "timestep": _timestep().float(),
        "encoder_hidden_states": [draw(tokens if size == "tiny" else 512, config.text_dim) for tokens in (5, 6)],
        "encoder_hidden_states_image": draw(2, 5 if size == "tiny" else 257, 1280),
        "condition_latents": [draw(config.in_dim - config.out_dim, *shape) for shape in given],
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": (frames + 1) * rows * columns,
        "reference_grid_sizes": torch.tensor([[frames, rows, columns]] * 2),
        "origin_len": 4 * (frames - 1) + 1,
        "origin_area": [8 * height, 8 * width],
    }


ANIMATE_2 = Spec(
    name="WanAnimate2Transformer3DModel",
    tiny={"text_len": 7, "in_dim": 12, "dim": 32, "ffn_dim": 32, "freq_dim": 32, "text_dim": 16, "out_dim": 4, "num_heads": 2},
    depth=_depth,
    inputs=_animate_2_inputs,
)


def _forcing_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """Diffusion forcing: every latent frame has its own timestep."""
    return {**_call(config, draw, size), "timestep": _timestep(2, _grid(size)[0]), "enable_diffusion_forcing": True}


SKYREELS = Spec(
    name="SkyReelsV2Transformer3DModel",
    tiny=_TINY,
    real={"num_attention_heads": 40, "ffn_dim": 13824},
    depth=_depth,
    inputs=_forcing_inputs,
)


CHRONOEDIT = Spec(
    name="ChronoEditTransformer3DModel",
    tiny=_IMAGE,
    real={"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    depth=_depth,
    inputs=_image_call,
)


def _flow_map_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """Frames come before channels, and every frame has the timestep it starts from and the one it goes to."""
    frames, height, width = _grid(size)
    return {
        **_call(config, draw, size),
        "hidden_states": draw(2, frames, config.in_channels, height, width),
        "timestep": _timestep(2, frames).float(),
        "r_timestep": _timestep(2, frames) / 2,
    }


ANYFLOW = Spec(name="AnyFlowTransformer3DModel", tiny=_TINY, depth=_depth, inputs=_flow_map_inputs)


def _far_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """A denoising step of the fourth chunk: one chunk before it is cached compressed, two are cached in full."""
    _, height, width = _grid(size)
    chunks = [1, 2, 2, 2] if size == "tiny" else [1, 3, 3, 3]
    frames, cached = chunks[-1], len(chunks) - 1
    full, compressed = ((height // p) * (width // q) for _, p, q in (config.patch_size, config.compressed_patch_size))
    most = max(chunks)

    def cache(tokens: int) -> Tensor:
        return draw(2, 2, config.num_attention_heads, tokens, config.attention_head_dim)

    return {
        **_flow_map_inputs(config, draw, size),
        "hidden_states": draw(2, frames, config.in_channels, height, width),
        "timestep": _timestep(2, frames).float(),
        "r_timestep": _timestep(2, frames) / 2,
        "chunk_partition": chunks,
        "kv_cache": {
            layer: {
                "full_cache": cache(config.full_chunk_limit * most * full),
                "compressed_cache": cache((len(chunks) - config.full_chunk_limit + 1) * most * compressed),
            }
            for layer in range(config.num_layers)
        },
        "kv_cache_flag": {
            "num_cached_chunks": cached,
            "is_cache_step": False,
            "num_cached_full_tokens": sum(chunks[-config.full_chunk_limit : -1]) * full,
            "num_cached_compressed_tokens": sum(chunks[: -config.full_chunk_limit]) * compressed,
        },
    }


ANYFLOW_FAR = Spec(
    name="AnyFlowFARTransformer3DModel",
    tiny={**_TINY, "attention_head_dim": 16},
    depth=_depth,
    inputs=_far_inputs,
)


def _helios_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """A chunk of frames after a history at three resolutions; the short one begins with the very first frame."""
    long, mid, short, frames = (4, 2, 1, 2) if size == "tiny" else (16, 2, 1, 9)
    height, width = (8, 8) if size == "tiny" else (48, 80)
    first, *indices = torch.arange(1 + long + mid + short + frames).split([1, long, mid, short, frames])
    indices[2] = torch.cat([first, indices[2]])
    history = {"long": long, "mid": mid, "short": short + 1}
    return {
        **_call(config, draw, size),
        "hidden_states": draw(2, config.in_channels, frames, height, width),
        "indices_hidden_states": indices[3].unsqueeze(0),
        **{f"indices_latents_history_{name}": index.unsqueeze(0) for name, index in zip(history, indices, strict=False)},
        **{f"latents_history_{name}": draw(2, config.in_channels, count, height, width) for name, count in history.items()},
    }


HELIOS = Spec(
    name="HeliosTransformer3DModel",
    tiny={**{key: item for key, item in _TINY.items() if key != "rope_max_seq_len"}, "attention_head_dim": 16, "rope_dim": (4, 6, 6)},
    depth=_depth,
    inputs=_helios_inputs,
)


_KANDINSKY = {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 16, "model_dim": 32, "ff_dim": 32, "axes_dims": (4, 6, 6)}


_KANDINSKY_TEXT = {**_KANDINSKY, "in_text_dim": 12, "in_text_dim2": 10, "visual_cond": True}


def _kandinsky_depth(layers: int) -> dict[str, Any]:
    return {"num_text_blocks": layers, "num_visual_blocks": layers}


def _kandinsky_call(config: Any, draw: Draw, grid: tuple[int, int, int]) -> dict[str, Any]:
    """Channels last: the latent, the latent of the condition and its mask."""
    return {"hidden_states": draw(2, *grid, 2 * config.in_visual_dim + 1), "timestep": _timestep().float()}


def _kandinsky_text_call(config: Any, draw: Draw, grid: tuple[int, int, int], text: int) -> dict[str, Any]:
    return {
        **_kandinsky_call(config, draw, grid),
        "encoder_hidden_states": draw(2, text, config.in_text_dim),
        "pooled_projections": draw(2, config.in_text_dim2),
    }


def _kandinsky_5_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    frames, height, width = grid = (2, 8, 8) if size == "tiny" else (31, 64, 96)
    text = 5 if size == "tiny" else 256
    return {
        **_kandinsky_text_call(config, draw, grid, text),
        "visual_rope_pos": [torch.arange(frames), torch.arange(height // 2), torch.arange(width // 2)],
        "text_rope_pos": torch.arange(text),
        "scale_factor": (1.0, 2.0, 2.0),
    }


KANDINSKY_5 = Spec(
    name="Kandinsky5Transformer3DModel",
    tiny=_KANDINSKY_TEXT,
    real={"in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 1792, "ff_dim": 7168, "visual_cond": True},
    depth=_kandinsky_depth,
    inputs=_kandinsky_5_inputs,
)


_KANDINSKY_6 = {"text_token_padding": True, "ca_rope": True, "cross_gates": True, "fix_modulation": True}


def _kandinsky_6_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """Video and audio; the second text is padded."""
    text, audio = (5, 6) if size == "tiny" else (256, 217)
    return {
        **_kandinsky_text_call(config, draw, (2, 8, 8) if size == "tiny" else (31, 64, 96), text),
        "audio_hidden_states": draw(2, audio, config.in_audio_dim),
        "encoder_attention_mask": torch.arange(text) < torch.tensor([[text], [text - 2]]),
    }


KANDINSKY_6 = Spec(
    name="Kandinsky6Transformer3DModel",
    tiny={**_KANDINSKY_TEXT, **_KANDINSKY_6, "in_audio_dim": 6, "out_audio_dim": 6},
    real=_KANDINSKY_6,
    depth=_kandinsky_depth,
    inputs=_kandinsky_6_inputs,
)


def _kandinsky_6_sr_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    """Tiles; a block of the sparse attention has 8 by 8 tokens."""
    return _kandinsky_call(config, draw, (2, 8, 16) if size == "tiny" else (21, 32, 48))


KANDINSKY_6_SR = Spec(
    name="Kandinsky6SRTransformer3DModel",
    tiny={**_KANDINSKY, "out_visual_dim": 8, "nabla_window": (1, 1, 1)},
    depth=lambda layers: {"num_visual_blocks": layers},
    inputs=_kandinsky_6_sr_inputs,
)


SPECS = [
    WAN,
    VACE,
    ANIMATE,
    ANIMATE_2,
    SKYREELS,
    CHRONOEDIT,
    ANYFLOW,
    ANYFLOW_FAR,
    HELIOS,
    KANDINSKY_5,
    KANDINSKY_6,
    KANDINSKY_6_SR,
]
