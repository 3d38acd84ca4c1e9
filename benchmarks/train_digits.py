"""Train the diffusion transformer that ships in `rfc_fx/zoo/digits`: `python -m benchmarks.train_digits`.

Data: scikit-learn's 1,797 handwritten digits of 8x8 pixels, a tenth held out. Noise prediction with linear betas
(DDPM, arXiv 2006.11239), a DiT with adaLN-Zero (arXiv 2212.09748), label dropout for classifier-free guidance.
Stop it at any time; started again with the same `--work` it goes on from its last checkpoint with the same random numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from rfc_fx.zoo import DIGITS, NULL_CLASS, digits_noise, sample_digits

BATCH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.03
WARMUP_STEPS = 200
EMA_DECAY = 0.999
LABEL_DROPOUT = 0.1
REPORT_EVERY = 1000
CHECKPOINT_EVERY = 500


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

    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=8,
        sample_size=8,
        patch_size=1,
        num_embeds_ada_norm=NULL_CLASS,
    )
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # labels are dropped here, for all blocks at once
    torch.nn.init.zeros_(model.proj_out_2.weight)
    torch.nn.init.zeros_(model.proj_out_2.bias)
    return model


def new_scheduler() -> Any:
    """Return the sampler the model is meant for: DDIM on 1000 linear betas, noise prediction, no clipping."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)


def noise_loss(model: Any, scheduler: Any, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of the predicted noise; draws noise and timesteps from torch's default generator."""
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),))
    noise = torch.randn_like(x)
    return F.mse_loss(model(scheduler.add_noise(x, noise, t), t, y, return_dict=False)[0], noise)


@torch.no_grad()
def held_out_loss(model: Any, scheduler: Any, x: Tensor, y: Tensor, repeats: int = 8) -> float:
    """Noise loss on held-out digits with fixed noise and timesteps (`repeats` draws for each digit)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return float(torch.stack([noise_loss(model, scheduler, x, y) for _ in range(repeats)]).mean())


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LEARNING_RATE * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write samples (n, 1, 8, 8) in [-1, 1] as one picture, `columns` to a row, each pixel shown 6x6."""
    from PIL import Image

    tiles = F.pad(images[:, 0].clamp(-1, 1), (1, 1, 1, 1), value=-1.0)
    rows = [torch.cat(list(tiles[i : i + columns]), dim=1) for i in range(0, len(tiles), columns)]
    pixels = ((torch.cat(rows, dim=0) + 1) * 127.5).round().to(torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    picture.resize((picture.width * 6, picture.height * 6), Image.Resampling.NEAREST).save(path)


def write_atomically(path: Path, state: dict[str, Any]) -> None:
    """Save a checkpoint so that a crash leaves either the old one or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(work: Path, steps: int, seed: int, console: Console) -> Any:
    """Train, or go on training, up to `steps`; return the model with its averaged (EMA) weights."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    train_x, train_y, held_x, held_y = digits()
    scheduler = new_scheduler()
    torch.manual_seed(seed)
    model = new_model().train()
    ema = new_model().eval()
    ema.load_state_dict(model.state_dict())
    averaged, live = list(ema.parameters()), list(model.parameters())
    optimizer = torch.optim.AdamW(live, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    first, log = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if (state["steps"], state["seed"]) != (steps, seed):
            raise typer.BadParameter(
                f"{checkpoint} was made with --steps {state['steps']} --seed {state['seed']}, "
                f"called with --steps {steps} --seed {seed}; pass the same or another --work"
            )
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first, log = state["step"], state["log"]

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=steps, completed=first)
        for step in range(first, steps):
            torch.manual_seed(seed * 1_000_003 + step)  # the random numbers of a step depend on nothing before it
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            rows = torch.randint(0, len(train_x), (BATCH,))
            labels = train_y[rows].masked_fill(torch.rand(BATCH) < LABEL_DROPOUT, NULL_CLASS)
            loss = noise_loss(model, scheduler, train_x[rows], labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(live, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():  # warm-up of the average, as in diffusers' EMAModel
                torch._foreach_lerp_(averaged, live, 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
            done = step + 1
            bar.update(task, completed=done, description=f"training, loss {float(loss.detach()):.4f}")
            if done % REPORT_EVERY == 0 or done == steps:
                row = {
                    "step": done,
                    "held_out_loss": held_out_loss(ema, scheduler, held_x, held_y),
                    "train_loss": held_out_loss(ema, scheduler, train_x[: len(held_x)], train_y[: len(held_x)]),
                }
                log.append(row)
                (work / "log.json").write_text(json.dumps(log, indent=1))
                labels = torch.arange(10).repeat_interleave(4)
                images = sample_digits(ema, scheduler, labels, digits_noise(list(range(40))))
                save_grid(images, work / f"grid-{done:06d}.png", columns=20)
                bar.console.print(f"step {done}: held-out loss {row['held_out_loss']:.4f}, training digits {row['train_loss']:.4f}")
            if done % CHECKPOINT_EVERY == 0 or done == steps:
                write_atomically(
                    checkpoint,
                    {
                        "model": model.state_dict(),
                        "ema": ema.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": done,
                        "steps": steps,
                        "seed": seed,
                        "log": log,
                    },
                )
    return ema


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
            images.append(sample_digits(model, scheduler, part, digits_noise(seeds)))
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
    wanted, real = figures["sample_accuracy"], figures["classifier_accuracy_on_held_out_digits"]
    return f"""# Digits, a small diffusion transformer

A diffusers `DiTTransformer2DModel` (8 blocks, 4 heads of 32, 8x8 pixels, patch 1, 10 classes and a null class 10) trained on
scikit-learn's handwritten digits (UCI "Optical Recognition of Handwritten Digits", CC BY 4.0). It is small on purpose: it samples in
seconds on a CPU, so every claim about feature caching can be checked on a trained model.

| figure | value |
|---|---|
| classifier reads the wanted class in samples (50 DDIM steps, CFG 1.5, {figures["samples"]:.0f} samples) | {wanted:.1%} |
| the same classifier (SVM, trained on the training digits) on held-out real digits | {real:.1%} |
| held-out noise-prediction loss (180 digits) | {figures["held_out_loss"]:.4f} |
| the same loss on 180 training digits | {figures["training_digits_loss"]:.4f} |

Weights: exponential moving average ({EMA_DECAY}) after {steps} steps of batch {BATCH}, AdamW {LEARNING_RATE} with cosine decay, weight
decay {WEIGHT_DECAY}, {LABEL_DROPOUT:.0%} label dropout, seed {seed}, stored in float16 and evaluated as stored. Made with
`python -m benchmarks.train_digits`; measured again with `python -m benchmarks.train_digits --evaluate-only`.

Limits: 8x8 grey pixels in [-1, 1], ten classes. With 1,617 training digits the model partly remembers them (compare the two losses).
"""


def ship(model: Any, out: Path) -> None:
    """Write float16 weights and both configurations in diffusers' format."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    model.save_config(out)
    new_scheduler().save_config(out)
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


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
        ship(train(work, steps, seed, console), out)
    model = DiTTransformer2DModel.from_pretrained(out, low_cpu_mem_usage=False).float().eval()
    figures = evaluate(model, DDIMScheduler.from_pretrained(out), samples, console)
    console.print_json(data=figures)
    if not evaluate_only:
        (out / "README.md").write_text(model_card(figures, steps, seed))


__all__: Sequence[str] = ("digits", "evaluate", "save_grid", "train")

if __name__ == "__main__":
    typer.run(main)
