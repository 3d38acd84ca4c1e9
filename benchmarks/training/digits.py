"""Train the diffusion transformer that ships in `rfc_fx/zoo/digits`: `python -m benchmarks.train_digits`.

Data: scikit-learn's 1,797 handwritten digits of 8x8 pixels, a tenth held out. Noise prediction with linear betas
(DDPM, arXiv 2006.11239), a DiT with adaLN-Zero (arXiv 2212.09748), label dropout for classifier-free guidance.
Stop it at any time; started again with the same `--work` it goes on from its last checkpoint with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from benchmarks.training import loop as training
from benchmarks.training.loop import Recipe, Task, adaln_zero, held_out_loss, save_grid, ship
from rfc_fx.zoo import DIGITS, NULL_CLASS, digits_noise, sample

RECIPE = Recipe(
    batch=64,
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    weight_decay=0.03,
    warmup_steps=200,
    ema_decay=0.999,
    label_dropout=0.1,
    report_every=1000,
    checkpoint_every=500,
)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (train pixels, train labels, held-out pixels, held-out labels); pixels (n, 1, 8, 8) in [-1, 1]."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = (data.images / 8.0 - 1.0)[:, None].astype("float32")
    split = train_test_split(pixels, data.target, test_size=0.1, random_state=0, stratify=data.target)
    train_x, held_x, train_y, held_y = (torch.as_tensor(part) for part in split)
    return train_x, train_y, held_x, held_y


def new_model() -> Any:
    """Return the untrained DiT: 8 blocks, 4 heads of 32, 64 tokens of one pixel, adaLN-Zero initialisation."""
    from diffusers import DiTTransformer2DModel

    return adaln_zero(
        DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=1,
            out_channels=1,
            num_layers=8,
            sample_size=8,
            patch_size=1,
            num_embeds_ada_norm=NULL_CLASS,
        )
    )


def new_scheduler() -> Any:
    """Return the sampler the model is meant for: DDIM on 1000 linear betas, noise prediction, no clipping."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)


def train(work: Path, steps: int, seed: int, console: Console) -> Any:
    """Train, or go on training, up to `steps`; return the model with its averaged (EMA) weights."""
    train_x, train_y, held_x, held_y = digits()
    scheduler = new_scheduler()

    def batch(size: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(train_x), (size,))
        return train_x[rows], train_y[rows]

    def report(ema: Any, step: int) -> dict[str, float]:
        images = sample(ema, scheduler, torch.arange(10).repeat_interleave(4), digits_noise(list(range(40))))
        save_grid(images, work / f"grid-{step:06d}.png", columns=20)
        return {
            "held_out_loss": held_out_loss(ema, scheduler, held_x, held_y),
            "train_loss": held_out_loss(ema, scheduler, train_x[: len(held_x)], train_y[: len(held_x)]),
        }

    task = Task(new_model=new_model, scheduler=scheduler, batch=batch, report=report)
    return training.train(task, RECIPE, work, steps=steps, seed=seed, console=console)


def evaluate(model: Any, scheduler: Any, samples: int, console: Console) -> dict[str, float]:
    """Share of samples (50 DDIM steps, CFG 1.5) in which a classifier trained on the real digits reads the wanted class."""
    from sklearn.svm import SVC

    train_x, train_y, held_x, held_y = digits()
    classifier = SVC(gamma=0.01, C=10.0).fit(train_x.flatten(1).numpy(), train_y.numpy())
    labels = torch.arange(samples) % 10
    images = []
    with Progress(console=console) as bar:
        task = bar.add_task("sampling", total=samples)
        for start in range(0, samples, 100):
            seeds = list(range(10_000 + start, 10_000 + min(start + 100, samples)))
            part = labels[start : start + len(seeds)]
            images.append(sample(model, scheduler, part, digits_noise(seeds)))
            bar.advance(task, len(seeds))
    read = classifier.predict(torch.cat(images).clamp(-1, 1).flatten(1).numpy())
    return {
        "samples": samples,
        "sample_accuracy": float((torch.as_tensor(read) == labels).float().mean()),
        "classifier_accuracy_on_held_out_digits": float(classifier.score(held_x.flatten(1).numpy(), held_y.numpy())),
        "held_out_loss": held_out_loss(model, scheduler, held_x, held_y),
        "training_digits_loss": held_out_loss(model, scheduler, train_x[: len(held_x)], train_y[: len(held_x)]),
    }


def model_card(figures: dict[str, float], steps: int, seed: int) -> str:
    """The model card: what it is, how it was made, and the measured evidence that it generates digits."""
    r, rate = RECIPE, RECIPE.learning_rate
    accuracy, real = figures["sample_accuracy"], figures["classifier_accuracy_on_held_out_digits"]
    return f"""# Digits, a small diffusion transformer

A diffusers `DiTTransformer2DModel` (8 blocks, 4 heads of 32, 8x8 pixels, patch 1, 10 classes and a null class 10) trained on
scikit-learn's handwritten digits (UCI "Optical Recognition of Handwritten Digits", CC BY 4.0). It is small on purpose: it samples in
seconds on a CPU, so every claim about feature caching can be checked on a trained model.

| figure | value |
|---|---|
| classifier reads the wanted class in samples (50 DDIM steps, CFG 1.5, {figures["samples"]:.0f} samples) | {accuracy:.1%} |
| the same classifier (SVM, trained on the training digits) on held-out real digits | {real:.1%} |
| held-out noise-prediction loss (180 digits) | {figures["held_out_loss"]:.4f} |
| the same loss on 180 training digits | {figures["training_digits_loss"]:.4f} |

Weights: exponential moving average ({r.ema_decay}) after {steps} steps of batch {r.batch}, AdamW {rate} with cosine decay, weight
decay {r.weight_decay}, {r.label_dropout:.0%} label dropout, seed {seed}, stored in float16 and evaluated as stored. Made with
`python -m benchmarks.train_digits`; measured again with `python -m benchmarks.train_digits --evaluate-only`.

Limits: 8x8 grey pixels in [-1, 1], ten classes. With 1,617 training digits the model partly remembers them (compare the two losses).
"""


def main(
    work: Annotated[Path, typer.Option(help="folder of checkpoints, grids and the log")] = Path("out/train_digits"),
    out: Annotated[Path, typer.Option(help="folder that gets the weights and the model card")] = DIGITS,
    steps: Annotated[int, typer.Option(min=1)] = 10_000,
    seed: int = 0,
    samples: Annotated[int, typer.Option(help="samples for the classifier figure", min=10)] = 1000,
    evaluate_only: Annotated[bool, typer.Option("--evaluate-only", help="measure the weights in --out again")] = False,
) -> None:
    """Train the digits model, ship its averaged weights, and measure them."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    console = Console()
    if not evaluate_only:
        ship(train(work, steps, seed, console), new_scheduler(), out, {})
    model = DiTTransformer2DModel.from_pretrained(out, low_cpu_mem_usage=False).float().eval()
    figures = evaluate(model, DDIMScheduler.from_pretrained(out), samples, console)
    console.print_json(data=figures)
    if not evaluate_only:
        (out / "README.md").write_text(model_card(figures, steps, seed))


__all__: Sequence[str] = ("digits", "evaluate", "train")
