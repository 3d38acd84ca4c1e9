"""Emoji in three styles on plain backgrounds, with captions: `python -m benchmarks.training.emoji_data`, a minute.

The icons come from three npm packages (Fluent Emoji Flat, MIT; Noto Emoji, Apache-2.0; Twemoji, CC BY 4.0), `resvg-py` draws them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float, Int, UInt8
from rich.progress import track
from torch import Tensor

from benchmarks.training.emoji_names import BACKGROUNDS, EMOJI, STYLES

SIZE = 64
MARGIN = 4
"""Pixels of background around the icon's box."""

HELD_OUT = 0.1
"""Share of the combinations of emoji, style and background that training does not see."""

WORDINGS = (
    "a {emoji}, {style} style, on {background}",
    "{emoji} on {background}, {style} style",
    "{style} style {emoji} on {background}",
    "{style} {emoji}, {background} background",
)
PLAIN_WORDINGS = ("a {emoji}", "{emoji} on {background}", "{style} {emoji}")
"""Captions that leave the style or the background open."""

Combinations = Int[Tensor, "N 3"]
"""Rows of (emoji, style, background), each an index into the names."""


def combinations() -> tuple[Combinations, Combinations]:
    """All combinations, as (trained, held out); each (emoji, style) is trained on some backgrounds, the split does not depend on a seed."""
    sizes = (len(EMOJI), len(STYLES), len(BACKGROUNDS))
    everything = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    order = torch.rand(sizes[0] * sizes[1], sizes[2], generator=torch.Generator().manual_seed(20)).argsort(dim=1)
    held = (order < round(HELD_OUT * sizes[2])).flatten()
    return everything[~held], everything[held]


def caption(combination: Sequence[int], wording: str = WORDINGS[0]) -> str:
    """The caption of (emoji, style, background), lower case, "an" before a vowel."""
    emoji, style, background = combination
    name = list(EMOJI)[emoji]
    text = wording.format(emoji=name, style=list(STYLES)[style], background=list(BACKGROUNDS)[background])
    return "an" + text[1:] if text.startswith("a ") and name[0] in "aeiou" else text


def background_rgb(indices: Int[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """RGB in [0, 1]."""
    return torch.tensor(list(BACKGROUNDS.values()))[indices] / 255


@dataclass(frozen=True, kw_only=True)
class Icons:
    """The drawings with their alpha channel, premultiplied, (emoji, style, 4, 64, 64)."""

    rgba: UInt8[Tensor, "E S 4 64 64"]

    def compose(self, rows: Combinations) -> Float[Tensor, "N 3 64 64"]:
        """The pictures of the combinations, in [-1, 1]."""
        rgba = self.rgba[rows[:, 0], rows[:, 1]].float() / 255
        back = background_rgb(rows[:, 2])[:, :, None, None]
        return 2 * (rgba[:, :3] + back * (1 - rgba[:, 3:])) - 1


def icon_set(folder: Path, package: str) -> dict[str, Any]:
    """The icons of an npm package under `folder`; typer.BadParameter says how to get them where it is missing."""
    path = folder / "node_modules" / "@iconify-json" / package / "icons.json"
    if not path.exists():
        packages = " ".join(f"@iconify-json/{name}" for name in STYLES.values())
        raise typer.BadParameter(f"{path} is missing; get it with: npm install --prefix {folder} {packages}")
    icons: dict[str, Any] = json.loads(path.read_text())
    return icons


def svg(icons: dict[str, Any], name: str) -> str:
    """The icon as an SVG document; aliases are followed."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    box = f'viewBox="{left} {top} {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box}>{icon["body"]}</svg>'


def draw(document: str, size: int = SIZE, margin: int = MARGIN) -> UInt8[Tensor, "4 H W"]:
    """The SVG document in the middle of a transparent square of `size` pixels, alpha premultiplied."""
    import io

    from PIL import Image

    try:
        import resvg_py
    except ImportError as error:
        raise typer.BadParameter("resvg-py is missing; get it with: pip install 'rfc-fx[train]'") from error
    inner = size - 2 * margin
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document, width=inner, height=inner)))).convert("RGBa")
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    top, left = margin + (inner - image.height) // 2, margin + (inner - image.width) // 2
    pixels[top : top + image.height, left : left + image.width] = np.frombuffer(image.tobytes(), np.uint8).reshape(
        image.height, image.width, 4
    )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def render(folder: Path, size: int = SIZE, margin: int = MARGIN) -> UInt8[Tensor, "E S 4 H W"]:
    """Draw every emoji in every style, with a progress bar."""
    sets = [icon_set(folder, package) for package in STYLES.values()]
    names = list(EMOJI.values())
    drawn = [draw(svg(icons, name), size, margin) for name in track(names, "rendering") for icons in sets]
    pixels: Tensor = torch.stack(drawn).unflatten(0, (len(names), len(sets)))
    return pixels


def load(path: Path) -> Icons:
    """The file that `python -m benchmarks.training.emoji_data` wrote; typer.BadParameter where it is missing or of other emoji."""
    from safetensors import safe_open

    if not path.exists():
        raise typer.BadParameter(f"{path} is missing; make it with: python -m benchmarks.training.emoji_data --out {path}")
    with safe_open(path, "pt") as file:
        if file.metadata() != _metadata():
            raise typer.BadParameter(f"{path} was made of other emoji or styles; make it again")
        return Icons(rgba=file.get_tensor("rgba"))


def _metadata() -> dict[str, str]:
    return {"emoji": json.dumps(EMOJI), "styles": json.dumps(STYLES)}


def main(
    icons: Annotated[Path, typer.Option(help="folder in which npm installed the icon sets")] = Path("out/icons"),
    out: Annotated[Path, typer.Option(help="file that gets the drawings")] = Path("out/emoji.safetensors"),
) -> None:
    """Draw all emoji, write them, and a picture of the first of them beside it."""
    from safetensors.torch import save_file

    from benchmarks.training.loop import save_grid

    out.parent.mkdir(parents=True, exist_ok=True)
    drawings = Icons(rgba=render(icons))
    save_file({"rgba": drawings.rgba}, out, metadata=_metadata())
    trained, held = combinations()
    shown = torch.tensor([(i, i % len(STYLES), i % len(BACKGROUNDS)) for i in range(len(EMOJI) // 20 * 20)])
    save_grid(drawings.compose(shown), out.with_suffix(".png"), columns=20, zoom=1)
    typer.echo(f"{len(EMOJI)} emoji, {len(trained)} combinations trained, {len(held)} held out: {out}")


if __name__ == "__main__":
    typer.run(main)
