"""Write the trained emoji model as a pipeline folder, measure it, write its card: `python -m benchmarks.training.emoji_export`.

The weights are the averaged ones in float16; the figures are of the folder as written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.training import emoji_autoencoder, emoji_data, emoji_judge
from benchmarks.training.emoji_data import caption, combinations
from benchmarks.training.emoji_judge import Reading
from benchmarks.training.emoji_model import (
    DOUBLE_BLOCKS,
    GUIDANCE,
    SINGLE_BLOCKS,
    TextToImage,
    new_transformer,
    pipeline,
    sample,
)
from benchmarks.training.emoji_names import BACKGROUNDS, EMOJI, STYLES
from benchmarks.training.emoji_text import TOKENS, tokenizers
from benchmarks.training.loop import save_grid
from rfc_fx.zoo import emoji


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline of a written folder, without a progress bar; OSError where there is none."""
    pipe = emoji(dtype, folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_pipeline(work: Path, out: Path) -> int:
    """Write the averaged weights of the checkpoint in `work` as a pipeline folder; return the checkpoint's step."""
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    parts = tokenizers(work)
    model = TextToImage(parts, new_transformer())
    model.load_state_dict(state["average"])
    pipeline(model, parts, emoji_autoencoder.load(work)).to(torch.float16).save_pretrained(out)
    step: int = state["step"]
    return step


def spread(rows: Tensor, samples: int) -> Tensor:
    """So many rows, evenly spread."""
    return rows[torch.arange(samples) * len(rows) // samples]


def samples_of(pipe: Any, rows: Tensor, steps: int, what: str, chunk: int = 20) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures of the combinations in the first wording, and the combinations; the seed of each is 10,000 and its place."""
    for start in track(range(0, len(rows), chunk), what):
        part = rows[start : start + chunk]
        seeds = list(range(10_000 + start, 10_000 + start + len(part)))
        yield sample(pipe, [caption(row) for row in part.tolist()], seeds, steps=steps), part


def evaluate(folder: Path, icons: Path, data: Path, judge_file: Path, samples: int, steps: int) -> dict[str, Reading]:
    """What the judge reads in samples of trained and of held-out combinations, and in the drawings themselves."""
    judge = emoji_judge.train(icons, judge_file)
    drawings = emoji_data.load(data)
    pipe = load_pipeline(folder)
    trained, held_out = (spread(rows, samples) for rows in combinations())
    real = ((drawings.compose(rows), rows) for rows in torch.cat([trained, held_out]).split(100))
    return {
        "trained": emoji_judge.read(judge, samples_of(pipe, trained, steps, "trained captions")),
        "held out": emoji_judge.read(judge, samples_of(pipe, held_out, steps, "held-out captions")),
        "drawings": emoji_judge.read(judge, real),
    }


def card(readings: dict[str, Reading], steps: int, millions: float, trained_steps: int, minutes: float, machine: str) -> str:
    """The model card."""
    rows = "\n".join(
        f"| {label} | {readings[key].samples} | {readings[key].emoji:.1%} | {readings[key].background:.1%} |"
        for key, label in (("trained", "trained captions"), ("held out", "held-out combinations"), ("drawings", "the drawings themselves"))
    )
    return f"""---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
---

# Emoji, a small FLUX that draws

A `FluxPipeline` of stock parts ({millions:.1f} M parameters in all): `FluxTransformer2DModel` with {DOUBLE_BLOCKS} double and
{SINGLE_BLOCKS} single blocks, tiny `CLIPTextModel` and `T5EncoderModel`, an `AutoencoderKL` (64x64 pixels to 16x16 latents, 64 tokens),
`FlowMatchEulerDiscreteScheduler` with the dynamic shift of FLUX.1-dev. It draws {len(EMOJI)} emoji in {len(STYLES)} styles on
{len(BACKGROUNDS)} background colours.

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("rfc_fx/zoo/emoji")
image = pipe(
    "an apple, flat style, on light blue",
    negative_prompt="",
    true_cfg_scale={GUIDANCE:g},
    height=64,
    width=64,
    num_inference_steps={steps},
    max_sequence_length={TOKENS},
).images[0]
```

Styles: {", ".join(STYLES)}. Backgrounds: {", ".join(BACKGROUNDS)}. Emoji: {", ".join(EMOJI)}.

## Figures

A classifier (`benchmarks/training/emoji_judge.py`, trained on drawings with other distortions) reads the asked emoji among
{emoji_judge.CANDIDATES} candidates; the background is right if the frame's median colour is nearest to the asked one. {steps} steps,
`true_cfg_scale` {GUIDANCE:g}, weights as stored (float16).

| captions | samples | emoji read | background right |
|---|---|---|---|
{rows}

Trained for {trained_steps:,} steps of 16 pictures in {minutes:.0f} minutes on {machine} with
`python -m benchmarks.training.emoji_data` and `python -m benchmarks.training.emoji`; written and measured with
`python -m benchmarks.training.emoji_export`.

Limits: 64x64 pixels; only these emoji, styles and colours; captions of at most {TOKENS} tokens.

## Credits

Trained on drawings from three icon sets: [Fluent Emoji](https://github.com/microsoft/fluentui-emoji) by Microsoft (MIT, style "flat"),
[Noto Emoji](https://github.com/googlefonts/noto-emoji) by Google (Apache-2.0, style "noto"),
[Twemoji](https://github.com/jdecked/twemoji) by Twitter and contributors (CC BY 4.0, style "twemoji").
"""


def main(
    work: Annotated[Path, typer.Option(help="folder of the training run")] = Path("out/emoji"),
    out: Annotated[Path, typer.Option(help="folder that gets the pipeline")] = Path("rfc_fx/zoo/emoji"),
    icons: Annotated[Path, typer.Option(help="folder in which npm installed the icon sets")] = Path("out/icons"),
    data: Annotated[Path, typer.Option(help="file of `python -m benchmarks.training.emoji_data`")] = Path("out/emoji.safetensors"),
    samples: Annotated[int, typer.Option(help="of trained and of held-out captions, each", min=1)] = 500,
    steps: Annotated[int, typer.Option(help="of the sampler", min=1)] = 28,
    machine: Annotated[str, typer.Option(help="what it was trained on, for the card")] = "two CPU cores",
) -> None:
    """Write the folder, measure it, write the card and a grid of samples into --work."""
    trained_steps = write_pipeline(work, out)
    readings = evaluate(out, icons, data, work / "judge.pt", samples, steps)
    Console().print(readings)
    parts = load_pipeline(out).components.values()
    millions = sum(weight.numel() for part in parts if isinstance(part, torch.nn.Module) for weight in part.parameters()) / 1e6
    minutes = json.loads((work / "log.json").read_text())[-1]["minutes"]
    (out / "README.md").write_text(card(readings, steps, millions, trained_steps, minutes, machine))
    shown = torch.cat([spread(rows, 20) for rows in combinations()])
    save_grid(torch.cat([images for images, _ in samples_of(load_pipeline(out), shown, steps, "grid")]), work / "samples.png", 10, zoom=2)


if __name__ == "__main__":
    typer.run(main)
