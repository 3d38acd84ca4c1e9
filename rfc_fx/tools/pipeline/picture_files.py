"""Pictures and frames that a pipeline is called with, read from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.load import one_line
from rfc_fx.tools.pipeline.video_file import INSTALL, frames_of, has_pyav

FRAMES = (".gif", ".mp4", ".mov", ".webm", ".mkv", ".avi")
"""Endings of files that are read as a list of frames."""


def read_picture(option: str, path: Path, *, is_mask: bool = False) -> Image.Image:
    """A picture in RGB, of a mask in grey; OptionError where there is none."""
    _check_there(option, path)
    try:
        with Image.open(path) as picture:
            return picture.convert("L" if is_mask else "RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise OptionError(f"{option} {path}: expected a picture that can be read: {one_line(error, width=120)}") from error


def read_frames(option: str, path: Path) -> list[Any]:
    """The frames of a video or an animation, as pictures in RGB."""
    _check_there(option, path)
    try:
        if path.suffix.lower() == ".gif":
            with Image.open(path) as animation:
                return [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
        if not has_pyav():
            raise OptionError(f"{option} {path}: reading videos needs PyAV: {INSTALL}")
        return frames_of(path)
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(f"{option} {path}: expected a video that can be read: {one_line(error, width=120)}") from error


def _check_there(option: str, path: Path) -> None:
    if not path.is_file():
        raise OptionError(f"{option} {path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
