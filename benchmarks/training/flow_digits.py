"""Train the flow-matching model that ships in `rfc_fx/zoo/flow_digits`: `python -m benchmarks.train_flow_digits`, minutes of one CPU core.

FLUX's architecture (2 double and 4 single blocks of 96) on scikit-learn's digits, 2x2 pixels a token: flow matching (arXiv 2210.02747) with
logit-normal times (arXiv 2403.03206), label dropout for classifier-free guidance. It can be stopped and goes on
as `benchmarks.train_digits` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from benchmarks.training import loop as training
from benchmarks.training.digits import digits
from benchmarks.training.emoji_model import new_flux
from benchmarks.training.loop import Images, Labels, Recipe, Task, held_out_loss, save_grid, ship
from rfc_fx.zoo import FLOW_DIGITS, digits_noise, load_flow_digits, sample
from rfc_fx.zoo.flow_digits_model import CLASSES, LabelledFlow

RECIPE = Recipe(
    batch=64,
    learning_rate=2e-3,
    betas=(0.9, 0.99),
    weight_decay=0.03,
    warmup_steps=100,
    ema_decay=0.998,
    label_dropout=0.1,
    report_every=500,
    checkpoint_every=250,
)

HEADS, AXES = 3, (8, 12, 12)
"""Heads of a block, and the channels of a head that rotate with (nothing, row, column)."""


def new_model() -> Any:
    """The untrained transformer (`new_flux`); the label is its text and its pooled text."""
    return new_flux(in_channels=4, blocks=(2, 4), heads=HEADS, axes=AXES, text_width=CLASSES, pooled_width=CLASSES)


def new_scheduler() -> Any:
    """Euler's method with the shift that SD3 and FLUX users have."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def flow_loss(model: Any, scheduler: Any, x: Images, y: Labels) -> Float[Tensor, ""]:
    """E |v(x_t, t) - (noise - x)|^2 with t logit-normal; draws from torch's default generator."""
    time = torch.sigmoid(torch.randn(len(x)))
    noise = torch.randn_like(x)
    noisy = torch.lerp(x, noise, time[:, None, None, None])
    return F.mse_loss(LabelledFlow(model)(noisy, timestep=1000 * time, class_labels=y).sample, noise - x)


def train(work: Path, steps: int, seed: int, console: Console) -> Any:
    """Train, or go on training, up to `steps`; return the model with its averaged (EMA) weights."""
    train_x, train_y, held_x, held_y = digits()

    def batch(size: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(train_x), (size,))
        return train_x[rows], train_y[rows]

    def report(ema: Any, step: int) -> dict[str, float]:
        images = sample(LabelledFlow(ema), new_scheduler(), torch.arange(10).repeat_interleave(2), digits_noise(list(range(20))), steps=20)
        save_grid(images, work / f"grid-{step:06d}.png", columns=20)
        return {"held_out_loss": held_out_loss(ema, None, held_x, held_y, loss=flow_loss)}

    task = Task(new_model=new_model, scheduler=new_scheduler(), batch=batch, report=report, loss=flow_loss)
    return training.train(task, RECIPE, work, steps=steps, seed=seed, console=console)


def evaluate(model: Any, scheduler: Any, samples: int = 500) -> dict[str, float]:
    """Share of samples (50 steps, CFG 1.5) in which a classifier trained on the real digits reads the wanted class."""
    from sklearn.svm import SVC

    train_x, train_y, held_x, held_y = digits()
    classifier = SVC(gamma=0.01, C=10.0).fit(train_x.flatten(1).numpy(), train_y.numpy())
    labels = torch.arange(samples) % 10
    seeds = list(range(10_000, 10_000 + samples))
    parts = zip(labels.split(100), torch.tensor(seeds).split(100), strict=True)
    images = torch.cat([sample(LabelledFlow(model), scheduler, part, digits_noise(of.tolist())) for part, of in parts])
    read = torch.as_tensor(classifier.predict(images.clamp(-1, 1).flatten(1).numpy()))
    return {
        "samples": samples,
        "sample_accuracy": float((read == labels).float().mean()),
        "classifier_accuracy_on_held_out_digits": float(classifier.score(held_x.flatten(1).numpy(), held_y.numpy())),
        "held_out_loss": held_out_loss(model, None, held_x, held_y, loss=flow_loss),
        "training_digits_loss": held_out_loss(model, None, train_x[: len(held_x)], train_y[: len(held_x)], loss=flow_loss),
    }


def model_card(figures: dict[str, float], steps: int, seed: int) -> str:
    """The model card: what it is, how it was made, and what it draws."""
    r = RECIPE
    accuracy, real = figures["sample_accuracy"], figures["classifier_accuracy_on_held_out_digits"]
    return f"""# Flow digits, a small flow-matching transformer

A diffusers `FluxTransformer2DModel` (2 double and 4 single blocks, {HEADS} heads of {sum(AXES)}, 8x8 pixels, 2x2 a token, the label as
one-hot text) trained on scikit-learn's handwritten digits (UCI "Optical Recognition of Handwritten Digits", CC BY 4.0), with
`FlowMatchEulerDiscreteScheduler` at shift 3. `rfc_fx.zoo.load_flow_digits()` loads it, `rfc_fx.zoo.sample(LabelledFlow(model), ...)` draws.

| figure | value |
|---|---|
| classifier reads the wanted class in samples (50 steps, CFG 1.5, {figures["samples"]:.0f} samples) | {accuracy:.1%} |
| the same classifier (SVM, trained on the training digits) on held-out real digits | {real:.1%} |
| held-out flow-matching loss (180 digits) | {figures["held_out_loss"]:.4f} |
| the same loss on 180 training digits | {figures["training_digits_loss"]:.4f} |

Weights: exponential moving average ({r.ema_decay}) after {steps} steps of batch {r.batch}, AdamW {r.learning_rate} with cosine decay,
{r.label_dropout:.0%} label dropout, seed {seed}, stored in float16 and evaluated as stored. Made with
`python -m benchmarks.train_flow_digits`.
"""


def main(
    work: Annotated[Path, typer.Option(help="folder of checkpoints, grids and the log")] = Path("out/train_flow_digits"),
    out: Annotated[Path, typer.Option(help="folder that gets the weights and the model card")] = FLOW_DIGITS,
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    seed: int = 0,
) -> None:
    """Train the flow-matching digits model, ship its averaged weights, and measure them."""
    console = Console()
    ship(train(work, steps, seed, console), new_scheduler(), out, {})
    figures = evaluate(*load_flow_digits(folder=out))
    console.print_json(data=figures)
    (out / "README.md").write_text(model_card(figures, steps, seed))
