"""Train a diffusion transformer for pictures to look at: `python -m benchmarks.train_shapes`, an hour or more of a CPU core.

Data: `benchmarks.training.shapes_data` draws every batch anew, so nothing is seen twice. Velocity prediction (arXiv 2202.00512) on the
cosine schedule (arXiv 2102.09672), a DiT with adaLN-Zero (arXiv 2212.09748), label dropout for classifier-free guidance. Stop it at any
time; started again with the same `--work` it goes on from its last checkpoint. With `--minutes` it ends after so much wall time in all,
the learning rate with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.quality import classifier
from benchmarks.training import loop as training
from benchmarks.training import shapes_data as shapes
from benchmarks.training.loop import Recipe, Task, adaln_zero, held_out_loss, save_grid, ship
from rfc_fx.zoo import NULL_CLASS, sample

RECIPE = Recipe(
    batch=48,
    learning_rate=1.5e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup_steps=100,
    ema_decay=0.995,
    label_dropout=0.1,
    report_every=200,
    checkpoint_every=50,
)


HELD_OUT_SEED = 1 << 41
"""Of the generator that draws the held-out pictures; the seeds of the steps are far below."""


def new_model() -> Any:
    """Return the untrained DiT: 8 blocks, 6 heads of 32, 64 tokens of 4x4 pixels, adaLN-Zero initialisation."""
    from diffusers import DiTTransformer2DModel

    return adaln_zero(
        DiTTransformer2DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=3,
            out_channels=3,
            num_layers=8,
            sample_size=shapes.SIZE,
            patch_size=4,
            num_embeds_ada_norm=NULL_CLASS,
        )
    )


def new_scheduler() -> Any:
    """Return the sampler the model is meant for: DDIM on 1000 steps of the cosine schedule, velocity prediction, no clipping.

    Noise prediction on linear betas, as the digits model has, left stray patches of noise after 600 steps: at the noisy end its error is
    divided by the square root of a vanishing alpha.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)


def drawn(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures of random classes, (n, 3, 32, 32) in [-1, 1], and their labels."""
    labels = torch.randint(0, len(shapes.CLASSES), (n,), generator=generator)
    return shapes.draw(labels, generator), labels


def held_out() -> tuple[Tensor, Tensor]:
    """256 pictures that training does not draw."""
    return drawn(256, torch.Generator().manual_seed(HELD_OUT_SEED))


def train(work: Path, out: Path, steps: int, minutes: float | None, seed: int, bf16: bool, console: Console) -> None:
    """Train, or go on training; the averaged (EMA) weights are written at every checkpoint."""
    scheduler = new_scheduler()
    held_x, held_y = held_out()

    def report(ema: Any, step: int) -> dict[str, float]:
        images = sample(ema, scheduler, torch.arange(20) % 10, shapes.noise(list(range(20))), steps=25, cfg=shapes.GUIDANCE)
        save_grid(images, work / f"grid-{step:06d}.png", columns=10, zoom=3)
        return {"held_out_loss": held_out_loss(ema, scheduler, held_x, held_y, repeats=2)}

    def checkpoint(ema: Any, step: int) -> None:
        ship(ema, scheduler, out, {"steps": str(step), "seed": str(seed)})

    task = Task(
        new_model=new_model,
        scheduler=scheduler,
        batch=lambda size: drawn(size, torch.default_generator),
        report=report,
        checkpoint=checkpoint,
    )
    training.train(task, RECIPE, work, steps=steps, seed=seed, console=console, minutes=minutes, bf16=bf16)


def evaluate(model: Any, scheduler: Any, samples: int, console: Console) -> dict[str, float]:
    """Share of samples (50 DDIM steps, CFG 3) in which a classifier trained on drawn shapes reads the wanted class."""
    judge = classifier.load("shapes")
    labels = torch.arange(samples) % 10
    images = []
    for start in track(range(0, samples, 50), "sampling", console=console):
        seeds = list(range(10_000 + start, 10_000 + min(start + 50, samples)))
        images.append(sample(model, scheduler, labels[start : start + len(seeds)], shapes.noise(seeds), cfg=shapes.GUIDANCE))
    held_x, held_y = held_out()
    return {
        "samples": samples,
        "sample_accuracy": classifier.accuracy(judge, torch.cat(images), labels),
        "classifier_accuracy_on_drawn_shapes": classifier.accuracy(judge, held_x, held_y),
        "held_out_loss": held_out_loss(model, scheduler, held_x, held_y),
    }


def model_card(figures: dict[str, float], millions: float, steps: int, seed: int) -> str:
    """The model card: what it is, how it was made, and the measured evidence that it draws shapes."""
    r, rate = RECIPE, RECIPE.learning_rate
    accuracy, real = figures["sample_accuracy"], figures["classifier_accuracy_on_drawn_shapes"]
    return f"""# Shapes, a diffusion transformer for pictures to look at

A diffusers `DiTTransformer2DModel` (8 blocks, 6 heads of 32, {millions:.1f} M parameters, 32x32 RGB pixels, patch 4, 10 classes and a
null class 10) trained on pictures that `benchmarks/shapes.py` draws: {", ".join(shapes.CLASSES)},
in random colours, places, sizes and rotations, shaded, on a gradient. No outside data. One can see what caching does
to its pictures.

| figure | value |
|---|---|
| classifier reads the wanted class in samples (50 DDIM steps, CFG {shapes.GUIDANCE:g}, {figures["samples"]:.0f} samples) | {accuracy:.1%} |
| the same classifier (`benchmarks/classifier.py`) on 256 newly drawn pictures | {real:.1%} |
| held-out velocity-prediction loss (256 newly drawn pictures) | {figures["held_out_loss"]:.4f} |

Weights: exponential moving average ({r.ema_decay}) after {steps} steps of batch {r.batch}, AdamW {rate} with cosine decay, weight
decay {r.weight_decay}, {r.label_dropout:.0%} label dropout, seed {seed}, stored in float16 and evaluated as stored. Made with
`python -m benchmarks.train_shapes` (the shipped weights with `--bf16 --steps 6000 --minutes 66`, on one core); measured again with
`python -m benchmarks.train_shapes --evaluate-only --out benchmarks/shapes_model`.

Limits: 32x32 pixels in [-1, 1], ten classes, one shape to a picture.
"""


def main(
    work: Annotated[Path, typer.Option(help="folder of checkpoints, grids and the log")] = Path("out/train_shapes"),
    out: Annotated[Path, typer.Option(help="folder that gets the weights and the model card")] = Path("out/shapes"),
    steps: Annotated[int, typer.Option(help="at most so many", min=1)] = 20_000,
    minutes: Annotated[float | None, typer.Option(help="wall time in all, goings-on included", min=0.1)] = None,
    seed: int = 0,
    samples: Annotated[int, typer.Option(help="samples for the classifier figure", min=10)] = 300,
    bf16: Annotated[bool, typer.Option("--bf16", help="autocast to bfloat16; faster where the CPU has AMX or AVX512-BF16")] = False,
    evaluate_only: Annotated[bool, typer.Option("--evaluate-only", help="measure the weights in --out again, and write the card")] = False,
) -> None:
    """Train the shapes model, write its averaged weights, and measure them."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel
    from safetensors import safe_open

    console = Console()
    if not evaluate_only:
        train(work, out, steps, minutes, seed, bf16, console)
    model = DiTTransformer2DModel.from_pretrained(out, low_cpu_mem_usage=False).float().eval()
    with safe_open(out / "diffusion_pytorch_model.safetensors", "pt") as file:
        metadata = file.metadata()
    figures = evaluate(model, DDIMScheduler.from_pretrained(out), samples, console)
    console.print_json(data=figures)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    (out / "README.md").write_text(model_card(figures, millions, int(metadata["steps"]), int(metadata["seed"])))


__all__: Sequence[str] = ("evaluate", "train")
