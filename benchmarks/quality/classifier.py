"""Small classifiers that judge samples of the shipped models: `python -m benchmarks.classifier` trains both.

Their features are for Frechet distances between samples (arXiv 1706.08500; the spatial ones as in sFID, arXiv 2103.03841), their logits for
the share of samples that show the wanted class. The one for shapes also learns to tell colours, place and size: its features see them too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training.digits import digits
from benchmarks.training.shapes_data import SIZE, Scene, render, scenes
from rfc_fx.io.atomic import write_atomically

FOLDER = Path(__file__).parents[1] / "results" / "classifiers"
"""Weights, float16, and what was measured with them."""


Name = Literal["digits", "shapes"]


Pixels = Float[Tensor, "N C H W"]


BATCH = 128


LEARNING_RATE = 2e-3


SEED = 0


HELD_OUT_SEED = 1 << 40
"""Of the generator that draws held-out shapes; training seeds are far below."""


FEATURES = 64


SPATIAL_CHANNELS = 4
"""Of the last 4x4 map, as sFID takes the first seven of its map: 64 values."""


LAYERS: dict[Name, list[tuple[int, int]]] = {
    "digits": [(24, 1), (48, 2), (32, 1)],
    "shapes": [(24, 1), (32, 2), (48, 2), (64, 2), (32, 1)],
}
"""Channels and stride of the convolutions: from 8x8 and from 32x32 pixels to 4x4."""


class Classifier(nn.Module):
    """Convolutions down to a map of 4x4, 64 features, 10 classes; pixels in [-1, 1], clamped as in a picture file."""

    def __init__(self, name: Name) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1 if name == "digits" else 3
        for wider, stride in LAYERS[name]:
            layers += [nn.Conv2d(width, wider, 3, stride, padding=1, bias=False), nn.GroupNorm(8, wider), nn.GELU()]
            width = wider
        self.body = nn.Sequential(*layers)
        self.neck = nn.Linear(width * 16, FEATURES)
        self.head = nn.Linear(FEATURES, 10)

    def features(self, x: Pixels) -> Float[Tensor, "N 64"]:
        """The penultimate layer before its activation."""
        out: Tensor = self.neck(self.body(x.clamp(-1, 1)).flatten(1))
        return out

    def spatial(self, x: Pixels) -> Float[Tensor, "N 64"]:
        """The first channels of the last map, 4x4 places each."""
        out: Tensor = self.body(x.clamp(-1, 1))[:, :SPATIAL_CHANNELS].flatten(1)
        return out

    def logits(self, x: Pixels) -> Float[Tensor, "N 10"]:
        return self.read(self.features(x))

    def read(self, features: Float[Tensor, "N 64"]) -> Float[Tensor, "N 10"]:
        """Logits of features that are there already."""
        out: Tensor = self.head(F.gelu(features))
        return out

    def forward(self, x: Pixels) -> Float[Tensor, "N 10"]:
        return self.logits(x)


def load(name: Name, folder: Path = FOLDER) -> Classifier:
    """The shipped classifier for the samples of a model, in eval mode, float32."""
    from safetensors.torch import load_file

    model = Classifier(name)
    model.load_state_dict({key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(model: Classifier, x: Pixels, y: Int[Tensor, " N"]) -> float:
    """Share of images whose class is read right."""
    read = torch.cat([model.logits(part).argmax(1) for part in x.split(500)])
    return float((read == y).float().mean())


def jittered(x: Pixels) -> Pixels:
    """Digits turned by up to 10 degrees, scaled by up to a tenth, moved by up to half a pixel; from torch's default generator."""
    n = len(x)
    turn, scale = 0.35 * (torch.rand(n) - 0.5), 1 + 0.2 * (torch.rand(n) - 0.5)
    rows = torch.stack([scale * turn.cos(), -scale * turn.sin(), scale * turn.sin(), scale * turn.cos()], dim=1)
    matrix = torch.cat([rows.view(n, 2, 2), 0.25 * (torch.rand(n, 2, 1) - 0.5)], dim=2)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def described(scene: Scene) -> Float[Tensor, "N D"]:
    """A scene as numbers of order one: colours, middle of the background, place, size."""
    return torch.cat(
        [
            2 * scene.foreground - 1,
            2 * scene.background.mean(1) - 1,
            (scene.background[:, 1] - scene.background[:, 0]) * scene.gradient.cos()[:, None],
            (scene.background[:, 1] - scene.background[:, 0]) * scene.gradient.sin()[:, None],
            scene.centre / (SIZE / 2) - 1,
            scene.radius[:, None] / 5 - 2,
        ],
        dim=1,
    )


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a classifier learns from: `batch` gives pixels, labels and what else features must tell, from the default generator."""

    steps: int
    batch: Callable[[], tuple[Pixels, Int[Tensor, " N"], Float[Tensor, "N D"]]]
    held_out: tuple[Pixels, Int[Tensor, " N"]]
    smoothing: float


def digits_lesson() -> Lesson:
    train_x, train_y, held_x, held_y = digits()

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(0, len(train_x), (BATCH,))
        return jittered(train_x[rows]), train_y[rows], torch.zeros(BATCH, 0)

    return Lesson(steps=1500, batch=batch, held_out=(held_x, held_y.long()), smoothing=0.05)


def shapes_lesson() -> Lesson:
    def drawn(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        labels = torch.randint(0, 10, (n,), generator=generator)
        scene = scenes(n, generator)
        return render(labels, scene), labels, described(scene)

    held_x, held_y, _ = drawn(2000, torch.Generator().manual_seed(HELD_OUT_SEED))
    return Lesson(steps=1200, batch=lambda: drawn(BATCH, torch.default_generator), held_out=(held_x, held_y), smoothing=0.0)


LESSONS: dict[Name, Callable[[], Lesson]] = {"digits": digits_lesson, "shapes": shapes_lesson}


def train(name: Name, steps: int | None, console: Console) -> tuple[Classifier, dict[str, Any]]:
    """Train a classifier; return it with its weights rounded to float16, and what was measured."""
    torch.manual_seed(SEED)
    lesson = LESSONS[name]()
    steps = steps or lesson.steps
    model = Classifier(name)
    told = nn.Linear(FEATURES, lesson.batch()[2].shape[1]) if name == "shapes" else None
    weights = [*model.parameters(), *(told.parameters() if told else ())]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    numbers: Iterable[int] = track(range(steps), f"training, {name}", console=console)
    for _ in numbers:
        x, y, scene = lesson.batch()
        features = model.features(x)
        loss = F.cross_entropy(model.read(features), y, label_smoothing=lesson.smoothing)
        if told is not None:
            loss = loss + F.mse_loss(told(F.gelu(features)), scene)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    minutes = (time.monotonic() - started) / 60
    model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    held_x, held_y = lesson.held_out
    return model.eval(), {
        "steps": steps,
        "batch": BATCH,
        "minutes": round(minutes, 2),
        "last_batch_loss": round(float(loss.detach()), 4),
        "held_out_images": len(held_y),
        "held_out_accuracy": round(accuracy(model, held_x, held_y), 4),
    }


def main(
    out: Annotated[Path, typer.Option(help="folder that gets the weights and what was measured")] = FOLDER,
    only: Annotated[str | None, typer.Option(help="digits or shapes; both if not given")] = None,
    steps: Annotated[int | None, typer.Option(help="instead of the usual number", min=20)] = None,
) -> None:
    """Train the classifiers and ship their weights in float16."""
    from safetensors.torch import save_file

    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    record = out / "measured.json"
    measured = json.loads(record.read_text()) if record.exists() else {}
    for name in LESSONS:
        if only in (None, name):
            model, figures = train(name, steps, console)
            weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
            write_atomically(out / f"{name}.safetensors", partial(save_file, weights))
            measured[name] = figures
            console.print_json(data={name: figures})
    record.write_text(json.dumps(measured, indent=1) + "\n")


__all__: Sequence[str] = ("Classifier", "accuracy", "load")
