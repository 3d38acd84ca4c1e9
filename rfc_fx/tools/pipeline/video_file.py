"""Videos as .mp4 files, through PyAV where it is installed."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INSTALL = 'pip install av, or pip install "rfc-fx[video]"'

_CODECS = ("libx264", "h264", "mpeg4")
"""In order of preference; builds of FFmpeg differ in what they encode."""


def has_pyav() -> bool:
    """Whether videos can be read and written."""
    return find_spec("av") is not None


def write_video(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    """Write frames (F, H, W, 3) as H.264 in 4:2:0, which wants even sides: the last row or column is repeated where one is odd."""
    import av

    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(_codec(), rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _codec() -> str:
    import av

    for name in _CODECS:
        try:
            av.codec.Codec(name, "w")
        except Exception:
            continue
        return name
    raise RuntimeError(f"this PyAV encodes none of {', '.join(_CODECS)}")


def frames_of(path: Path) -> list[Any]:
    """The frames of a video, as pictures in RGB."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_image().convert("RGB") for frame in container.decode(video=0)]
