"""Tokenizers and text encoders of the emoji model: stock classes of transformers, vocabularies made from the captions."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from benchmarks.training.emoji_data import PLAIN_WORDINGS, WORDINGS, caption, combinations

WIDTH = 128
TOKENS = 12
"""Tokens of a caption, padding included; the longest caption has so many."""

CLIP_TOKENS = 16

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How T5 writes the space before a word."""

LETTER_SCORE = -20.0
"""Log-probability of a letter, below that of every word."""


def all_captions() -> Iterator[str]:
    """Every caption of every combination."""
    for rows in combinations():
        for row in rows.tolist():
            yield from (caption(row, wording) for wording in WORDINGS + PLAIN_WORDINGS)


def new_clip_tokenizer() -> Any:
    """`CLIPTokenizer`, byte pair encoding; every word of the captions is one token."""
    import json

    from tokenizers import trainers
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    made = CLIPTokenizer(vocab={token: i for i, token in enumerate([*special, "!"])}, merges=[])
    trainer = trainers.BpeTrainer(vocab_size=4096, min_frequency=1, special_tokens=special, end_of_word_suffix="</w>", show_progress=False)
    made.backend_tokenizer.train_from_iterator(all_captions(), trainer)
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]  # typed as strings; the constructor wants pairs
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=CLIP_TOKENS)


def new_t5_tokenizer() -> Any:
    """`T5Tokenizer`, unigrams: the words of the captions by their frequency, single letters for all others."""
    from collections import Counter

    from transformers import T5Tokenizer

    words = Counter(word for text in all_captions() for word in text.replace(",", " ,").split())
    total = sum(words.values())
    pieces = [(("" if word == "," else SPACE) + word, math.log(count / total)) for word, count in sorted(words.items())]
    letters = [(letter, LETTER_SCORE) for letter in (SPACE, *string.ascii_lowercase)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=special + pieces + letters, extra_ids=0, model_max_length=TOKENS)


def tokenizers(work: Path) -> tuple[Any, Any]:
    """Both tokenizers of the run in `work`; made and written there if it has none (byte pairs of equal count merge in any order)."""
    from transformers import CLIPTokenizer, T5Tokenizer

    folders = (work / "tokenizer", work / "tokenizer_2")
    if not all((folder / "tokenizer.json").exists() for folder in folders):
        for tokenizer, folder in zip((new_clip_tokenizer(), new_t5_tokenizer()), folders, strict=True):
            tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folders[0]), T5Tokenizer.from_pretrained(folders[1])


def new_clip_encoder(tokenizer: Any) -> Any:
    """The untrained `CLIPTextModel`, 2 layers; its pooled output goes into the modulations."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_t5_encoder(tokenizer: Any) -> Any:
    """The untrained `T5EncoderModel`, 2 layers."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=WIDTH // 4,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def token_ids(tokenizer: Any, captions: list[str], length: int) -> Int[Tensor, "N T"]:
    """As `FluxPipeline` makes them."""
    ids: Tensor = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return ids
