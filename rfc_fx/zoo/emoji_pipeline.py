"""EmojiPipeline: `FluxPipeline` with the defaults of the shipped emoji model."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer


class EmojiPipeline(FluxPipeline):  # type: ignore[misc]  # diffusers has no annotations
    """`FluxPipeline` that draws at the autoencoder's own size and pads prompts to the tokens that the T5 tokenizer takes.

    The folder is that of a `FluxPipeline`, which needs `height=64, width=64, max_sequence_length=12` in every call.
    """

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5Tokenizer,
        transformer: FluxTransformer2DModel,
        image_encoder: Any = None,
        feature_extractor: Any = None,
    ) -> None:
        super().__init__(
            scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer, image_encoder, feature_extractor
        )
        self.default_sample_size = vae.config.sample_size // self.vae_scale_factor  # in latents

    def encode_prompt(self, *args: Any, max_sequence_length: int = 512, **kwargs: Any) -> Any:
        """Embeddings of prompts, padded or cut to at most the tokens that the T5 tokenizer takes."""
        length = min(max_sequence_length, self.tokenizer_2.model_max_length)
        return super().encode_prompt(*args, max_sequence_length=length, **kwargs)
