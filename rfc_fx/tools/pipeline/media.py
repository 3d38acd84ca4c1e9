"""What a pipeline returns, whatever its form, as one tensor: pictures (4 axes), videos (5) or sound (3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rfc_fx.tools.load import LoadError

Kind = Literal["picture", "video", "sound"]

_FIELDS: Mapping[str, Kind] = {
    "images": "picture",
    "image": "picture",
    "frames": "video",
    "videos": "video",
    "video": "video",
    "audios": "sound",
    "audio": "sound",
}
"""Fields of the output objects of diffusers, the main one first."""

Samples = Float[Tensor, "N ..."]
"""Pictures N C H W, videos N F C H W, sound N C T; in [-1, 1], float32 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """The samples of one call; of a video with sound, the sound beside it."""

    samples: Samples
    sound: Float[Tensor, "N C T"] | None = None


def kind_of(samples: Samples) -> Kind:
    """What samples are, by the number of their axes."""
    kinds: dict[int, Kind] = {3: "sound", 4: "picture", 5: "video"}
    return kinds[samples.dim()]


def media_of(output: Any, count: int) -> Media:
    """The `count` samples of a pipeline's output object or tuple; LoadError where nothing of it can be shown."""
    name = type(output).__name__
    fields = {field: value for field in _FIELDS if (value := getattr(output, field, None)) is not None}
    if not fields:
        first = output[0] if isinstance(output, tuple | list) and len(output) else output
        guess: Kind = {5: "video", 4: "picture"}.get(getattr(first, "ndim", 4), "sound")  # type: ignore[assignment]
        fields = {{"video": "frames", "picture": "images", "sound": "audios"}[guess]: first}
    try:
        samples = [_samples(value, _FIELDS[field]) for field, value in fields.items()]
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise LoadError(f"{name}: {', '.join(fields)} hold neither pictures nor frames nor sound: {error}") from error
    main, sound = samples[0], next((each for each in samples[1:] if each.dim() == 3), None)
    if len(main) != count:
        if count != 1 or main.dim() != 4:
            raise LoadError(f"{name}: expected {count} samples, got {len(main)}")
        main = torch.cat(list(main), dim=-1)[None]  # several pictures of one prompt, side by side
    return Media(samples=main, sound=sound)


def _samples(value: Any, kind: Kind) -> Samples:
    if kind == "sound":
        return _sound(value)
    frames = _pixels(value)
    axes = frames.dim()
    if axes == 3 or (axes == 4 and kind == "video"):  # one picture
        frames = frames[None]
    if frames.dim() not in (4, 5):
        raise ValueError(f"expected 4 or 5 axes, got shape {tuple(frames.shape)}")
    return frames


def _pixels(value: Any) -> Tensor:
    """(..., C, H, W) in [-1, 1] of pictures, arrays (channels last) or tensors (channels first), also in lists."""
    if isinstance(value, Image.Image):
        return _pixels(np.asarray(value.convert("RGB")))
    if isinstance(value, Tensor):
        return _ranged(value.detach().cpu())
    if isinstance(value, np.ndarray):
        return _ranged(torch.from_numpy(np.array(value))).movedim(-1, -3)
    if isinstance(value, list | tuple) and value:
        return torch.stack([_pixels(each) for each in value])
    raise TypeError(f"got {type(value).__name__}")


def _ranged(values: Tensor) -> Tensor:
    """[0, 1], or bytes, as float32 in [-1, 1]."""
    scale = 255.0 if values.dtype == torch.uint8 else 1.0
    return values.float() / scale * 2 - 1


def _sound(value: Any) -> Tensor:
    if isinstance(value, list | tuple) and value:
        value = torch.stack([torch.as_tensor(each) for each in value])
    sound = torch.as_tensor(value).detach().float().cpu()
    if not 1 <= sound.dim() <= 3:
        raise ValueError(f"expected 1 to 3 axes, got shape {tuple(sound.shape)}")
    return sound.reshape(1, 1, -1) if sound.dim() == 1 else sound[:, None] if sound.dim() == 2 else sound


def sampling_rate(pipe: Any) -> int:
    """Samples a second of a pipeline's sound, as its parts say; 44100 where none does."""
    for owner in (pipe, *(getattr(pipe, part, None) for part in ("vocoder", "vae", "audio_vae", "sound_tokenizer"))):
        for place in (getattr(owner, "config", None), owner):
            for name in ("output_sampling_rate", "sampling_rate", "sample_rate"):
                rate = getattr(place, name, None)
                if isinstance(rate, int | float) and rate > 0:
                    return int(rate)
    return 44100
