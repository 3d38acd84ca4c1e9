"""Transformers of audio, of proteins, and of several modalities at once."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.coverage.classes.image import both, kept
from benchmarks.coverage.classes.spec import Draw, Size, Spec


def _ace_step_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    frames, text = (12, 7) if size == "tiny" else (1500, 512)
    audio = config.audio_acoustic_hidden_dim
    return {
        "hidden_states": draw(2, frames, audio),
        "timestep": both(0.5),
        "timestep_r": both(0.5),
        "encoder_hidden_states": draw(2, text, config.hidden_size),
        "context_latents": draw(2, frames, config.in_channels - audio),
    }


ACE_STEP = Spec(
    name="AceStepTransformer1DModel",
    tiny={
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "in_channels": 12,
        "audio_acoustic_hidden_dim": 4,
        "sliding_window": 2,
    },
    depth=lambda layers: {"num_hidden_layers": 2 * layers},
    inputs=_ace_step_inputs,
)


def _longcat_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    frames, text = (12, 7) if size == "tiny" else (352, 256)
    return {
        "hidden_states": draw(2, frames, config.latent_dim),
        "encoder_hidden_states": draw(2, text, config.dit_text_dim),
        "encoder_attention_mask": kept(text),
        "timestep": both(0.5),
        "attention_mask": kept(frames),
        "latent_cond": torch.zeros(2, frames, config.latent_dim),
    }


LONGCAT = Spec(
    name="LongCatAudioDiTTransformer",
    tiny={"dit_dim": 32, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 4, "ff_mult": 2.0},
    depth=lambda layers: {"dit_depth": layers},
    inputs=_longcat_inputs,
)


def _minimax_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    frames = 12 if size == "tiny" else 1024
    return {
        "hidden_states": draw(2, config.in_channels, frames),
        "timestep": both(0.5),
        "encoder_hidden_states": draw(2, frames, config.condition_dim),
    }


MINIMAX_MUSIC = Spec(
    name="MiniMaxMusic3Transformer1DModel",
    tiny={
        "in_channels": 4,
        "condition_dim": 12,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ff_inner_dim": 32,
        "rotary_dim": 8,
        "fourier_embedding_dim": 16,
    },
    depth=lambda layers: {"num_layers": layers},
    inputs=_minimax_inputs,
)


def _stable_audio_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    frames, text = (12, 7) if size == "tiny" else (config.sample_size, 130)
    angles = get_1d_rotary_pos_embed(config.attention_head_dim // 2, frames + 1, use_real=True, repeat_interleave_real=False)
    return {
        "hidden_states": draw(2, config.in_channels, frames),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": draw(2, text, config.cross_attention_input_dim),
        "global_hidden_states": draw(2, 1, config.global_states_input_dim),
        "rotary_embedding": angles,
    }


STABLE_AUDIO = Spec(
    name="StableAudioDiTModel",
    tiny={
        "in_channels": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 1,
        "out_channels": 4,
        "cross_attention_dim": 16,
        "time_proj_dim": 16,
        "global_states_input_dim": 12,
        "cross_attention_input_dim": 12,
    },
    depth=lambda layers: {"num_layers": layers},
    inputs=_stable_audio_inputs,
)


def _stable_audio_3_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    frames, text = (12, 7) if size == "tiny" else (1024, 257)
    return {
        "hidden_states": draw(2, config.io_channels, frames),
        "timestep": both(0.5),
        "encoder_hidden_states": draw(2, text, config.cond_token_dim),
        "global_hidden_states": draw(2, config.global_cond_dim),
        "encoder_attention_mask": kept(text),
    }


STABLE_AUDIO_3 = Spec(
    name="StableAudio3DiTModel",
    tiny={
        "io_channels": 4,
        "embed_dim": 32,
        "num_heads": 2,
        "cond_token_dim": 12,
        "global_cond_dim": 12,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "ff_mult": 2.0,
        "num_memory_tokens": 3,
    },
    depth=lambda layers: {"depth": layers},
    inputs=_stable_audio_3_inputs,
)


def _t5_film_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    notes, context = (7, 5) if size == "tiny" else (2048, 256)
    return {
        "encodings_and_masks": [
            (draw(2, notes, config.d_model), kept(notes)),
            (draw(2, context, config.d_model), torch.ones(2, context)),
        ],
        "decoder_input_tokens": draw(2, config.targets_length, config.input_dims),
        "decoder_noise_time": both(0.5),
    }


T5_FILM = Spec(
    name="T5FilmDecoder",
    tiny={"input_dims": 4, "targets_length": 8, "d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 32},
    depth=lambda layers: {"num_layers": layers},
    inputs=_t5_film_inputs,
    latent="decoder_input_tokens",
    timestep="decoder_noise_time",
)


def _proteina_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    tokens = 8 if size == "tiny" else 256
    present = torch.ones(2, tokens, dtype=torch.bool)
    chain = torch.arange(tokens).expand(2, -1) * 2 // tokens
    annotated = ("hbond", "pistack", "pication", "saltbridge", "hydrophobic", "metal-coord")
    return {
        "bb_ca": draw(2, tokens, 3),
        "local_latents": draw(2, tokens, config.latent_dim),
        "bb_ca_time": both(0.5),
        "local_latents_time": both(0.4),
        "padding_mask": kept(tokens),
        "token_type": torch.zeros(2, tokens, dtype=torch.long),
        "atom37_mask": torch.ones(2, tokens, 37, dtype=torch.bool),
        "conditioning": {
            **{f"condition_{name}_1_atom": torch.zeros(2, tokens, 37) for name in annotated},
            "condition_index-group_1_token": chain,
            "is_in_context_conditioning": ~present,
            "supports_local_latent": present,
            "molecule_iid": chain,
            "molecule_entity_id": chain,
            "token_bond_path_length": (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs().expand(2, -1, -1),
        },
    }


PROTEINA = Spec(
    name="RFD4ProteinaTransformer",
    tiny={
        "token_dim": 32,
        "nheads": 2,
        "dim_cond": 16,
        "pair_repr_dim": 16,
        "latent_dim": 4,
        "token_type_emb_dim": 4,
        "cath_emb_dim": 4,
        "t_emb_dim": 16,
        "seq_sep_dim": 8,
        "xt_pair_dist_dim": 6,
        "tri_mult_c": 8,
    },
    depth=lambda layers: {"nlayers": 2 * layers},
    inputs=_proteina_inputs,
    latent="bb_ca",
    timestep="bb_ca_time",
)


def _cosmos_inputs(config: Any, draw: Draw, size: Size) -> dict[str, Any]:
    text, frames, side = (7, 2, 4) if size == "tiny" else (256, 6, 64)
    grid = side // config.latent_patch_size
    vision = frames * grid * grid
    places = torch.arange(vision)
    words = torch.arange(text).expand(3, -1)
    margin = text + config.unified_3d_mrope_temporal_modality_margin
    patches = torch.stack([margin + places // grid**2, places // grid % grid, places % grid])
    indexes = text + places
    return {
        "input_ids": torch.arange(text),
        "text_indexes": torch.arange(text),
        "position_ids": torch.cat([words, patches], dim=1).float(),
        "und_len": text,
        "sequence_length": text + vision,
        "vision_tokens": [draw(1, config.latent_channel, frames, side, side)],
        "vision_token_shapes": [(frames, grid, grid)],
        "vision_sequence_indexes": indexes,
        "vision_mse_loss_indexes": indexes,
        "vision_timesteps": torch.full((vision,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(frames)],
    }


COSMOS = Spec(
    name="Cosmos3OmniTransformer",
    tiny={
        "head_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "latent_channel": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "patch_latent_dim": 16,
        "vocab_size": 20,
        "rope_axes_dim": (4, 2, 2),
    },
    depth=lambda layers: {"num_hidden_layers": layers},
    inputs=_cosmos_inputs,
    latent="vision_tokens",
    timestep="vision_timesteps",
)


SPECS = [ACE_STEP, LONGCAT, MINIMAX_MUSIC, STABLE_AUDIO, STABLE_AUDIO_3, T5_FILM, PROTEINA, COSMOS]
