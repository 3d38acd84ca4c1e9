"""Samples as files: a .png for a picture, an .mp4 for a video, a .wav for sound."""

from __future__ import annotations

import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rfc_fx.tools.pictures import as_picture
from rfc_fx.tools.pipeline.media import Media, kind_of
from rfc_fx.tools.pipeline.video_file import INSTALL, has_pyav, write_video


def missing_encoder(drawn: Sequence[Media]) -> str | None:
    """The note where videos were drawn that no .mp4 can be written of."""
    if has_pyav() or not any(kind_of(media.samples) == "video" for media in drawn):
        return None
    return f"no .mp4: writing videos needs PyAV ({INSTALL}); images.png shows frames of every video"


def save_media(folder: Path, stems: Sequence[str], media: Media, fps: float, rate: int) -> Iterator[Path]:
    """Write each sample to a file of its own, named by its stem; yields what was written."""
    kind = kind_of(media.samples)
    for index, (stem, sample) in enumerate(zip(stems, media.samples, strict=True)):
        if kind == "picture":
            as_picture(sample).save(path := folder / f"{stem}.png")
            yield path
        elif kind == "video" and has_pyav():
            write_video(path := folder / f"{stem}.mp4", np.stack([np.asarray(as_picture(frame)) for frame in sample]), fps)
            yield path
        sound = sample if kind == "sound" else None if media.sound is None else media.sound[index]
        if sound is not None:
            write_sound(path := folder / f"{stem}.wav", sound, rate)
            yield path


def write_sound(path: Path, sound: Float[Tensor, "C T"], rate: int) -> None:
    """Write sound in [-1, 1] in 16 bits."""
    values = (sound.nan_to_num().clamp(-1, 1) * 32767).round().to(torch.int16)
    interleaved: NDArray[np.int16] = values.T.contiguous().numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(sound))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(interleaved.astype("<i2").tobytes())
