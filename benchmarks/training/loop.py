"""What the training scripts of the shipped models share: one loop that can be stopped, averaged weights, grids of samples.

The scheduler says what is predicted, the noise (DDPM, arXiv 2006.11239) or the velocity (arXiv 2202.00512); label dropout for
classifier-free guidance (arXiv 2207.12598).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from rfc_fx.io.atomic import write_atomically
from rfc_fx.zoo import NULL_CLASS

Images = Float[Tensor, "N C H W"]


Labels = Int[Tensor, " N"]


Loss = Callable[[Any, Any, Images, Labels], Float[Tensor, ""]]
"""Of model, scheduler, pictures and labels."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW with warm-up and cosine decay, averaged weights, label dropout; counts are steps."""

    batch: int
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    warmup_steps: int
    ema_decay: float
    label_dropout: float
    report_every: int
    checkpoint_every: int

    def rate(self, step: int, progress: float) -> float:
        """The learning rate: linear warm-up, then cosine to zero where `progress` is 1."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        return self.learning_rate * 0.5 * (1 + math.cos(min(1.0, max(0.0, progress)) * math.pi))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what; `batch`, called with a size, draws from torch's default generator."""

    new_model: Callable[[], Any]
    scheduler: Any
    batch: Callable[[int], tuple[Images, Labels]]
    report: Callable[[Any, int], dict[str, float]]
    """Figures of the averaged model after so many steps; may draw a grid."""
    checkpoint: Callable[[Any, int], None] | None = None
    """Called with the averaged model and the step when a checkpoint was written."""
    loss: Loss = lambda model, scheduler, x, y: prediction_loss(model, scheduler, x, y)
    """Of a batch; draws noise and times from torch's default generator."""


def adaln_zero(model: Any) -> Any:
    """The adaLN-Zero start of a diffusers DiT (arXiv 2212.09748); its own label dropout, one draw for each block, is off."""
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # labels are dropped in the loop, for all blocks at once
    torch.nn.init.zeros_(model.proj_out_2.weight)
    torch.nn.init.zeros_(model.proj_out_2.bias)
    return model


def prediction_loss(model: Any, scheduler: Any, x: Images, y: Labels) -> Float[Tensor, ""]:
    """Mean squared error of the predicted noise or velocity; draws noise and timesteps from torch's default generator."""
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),))
    noise = torch.randn_like(x)
    target = scheduler.get_velocity(x, noise, t) if scheduler.config.prediction_type == "v_prediction" else noise
    return F.mse_loss(model(scheduler.add_noise(x, noise, t), t, y, return_dict=False)[0], target)


@torch.no_grad()
def held_out_loss(model: Any, scheduler: Any, x: Images, y: Labels, repeats: int = 8, loss: Loss = prediction_loss) -> float:
    """The loss with fixed noise and timesteps (`repeats` draws for each image)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return float(torch.stack([loss(model, scheduler, x, y) for _ in range(repeats)]).mean())


def save_grid(images: Images, path: Path, columns: int, zoom: int = 6) -> None:
    """Write images in [-1, 1], grey or RGB, as one picture, `columns` to a row, each pixel shown `zoom` x `zoom`."""
    from PIL import Image

    tiles = F.pad(images.clamp(-1, 1), (1, 1, 1, 1), value=-1.0)
    rows = [torch.cat(list(tiles[i : i + columns]), dim=2) for i in range(0, len(tiles), columns)]
    pixels = ((torch.cat(rows, dim=1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    picture = Image.fromarray(pixels.squeeze(2).numpy())
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)


def ship(model: Any, scheduler: Any, out: Path, metadata: dict[str, str]) -> None:
    """Write float16 weights and both configurations in diffusers' format; `metadata` goes into the weights' file."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    model.save_config(out)
    scheduler.save_config(out)
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    target = out / "diffusion_pytorch_model.safetensors"
    write_atomically(target, lambda path: save_file(weights, path, metadata={"format": "pt"} | metadata))


def train(
    task: Task, recipe: Recipe, work: Path, *, steps: int, seed: int, console: Console, minutes: float | None = None, bf16: bool = False
) -> Any:
    """Train, or go on training, up to `steps` or `minutes` of wall time in all; return the model with its averaged weights.

    The learning rate falls with whichever of the two is nearer its end; with more `steps` than before it rises again to where it would be.
    typer.BadParameter for a `work` of another run.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    torch.manual_seed(seed)
    model = task.new_model().train()
    ema = task.new_model().eval()
    ema.load_state_dict(model.state_dict())
    averaged, live = list(ema.parameters()), list(model.parameters())
    optimizer = torch.optim.AdamW(live, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
    done, seconds_before, log = 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["seed"] != seed or state["steps"] > steps:
            raise typer.BadParameter(
                f"{checkpoint} was made with --steps {state['steps']} --seed {state['seed']}, "
                f"called with --steps {steps} --seed {seed}; pass the same, more steps, or another --work"
            )
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        done, log, seconds_before = state["step"], state["log"], state.get("seconds", 0.0)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.monotonic() - seconds_before
    losses: list[float] = []

    def time_share() -> float:
        return 0.0 if minutes is None else (time.monotonic() - started) / (60 * minutes)

    with Progress(*columns, console=console) as bar:
        row = bar.add_task("training", total=steps, completed=done)
        while done < steps and time_share() < 1:
            step = done
            torch.manual_seed(seed * 1_000_003 + step)  # the random numbers of a step depend on nothing before it
            progress = max((step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps), time_share())
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, progress)
            x, labels = task.batch(recipe.batch)
            labels = labels.masked_fill(torch.rand(recipe.batch) < recipe.label_dropout, NULL_CLASS)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = task.loss(model, task.scheduler, x, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(live, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():  # warm-up of the average, as in diffusers' EMAModel
                torch._foreach_lerp_(averaged, live, 1 - min(recipe.ema_decay, (1 + step) / (10 + step)))
            done = step + 1
            losses.append(float(loss.detach()))
            bar.update(row, completed=done, description=f"training, loss {losses[-1]:.4f}")
            last = done == steps or time_share() >= 1
            if done % recipe.report_every == 0 or last:
                figures = {"step": done, "minutes": (time.monotonic() - started) / 60, "batch_loss": sum(losses) / len(losses)}
                log.append(figures | task.report(ema, done))
                losses = []
                (work / "log.json").write_text(json.dumps(log, indent=1))
                bar.console.print(", ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))
            if done % recipe.checkpoint_every == 0 or last:
                state = {
                    "model": model.state_dict(),
                    "ema": ema.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "steps": steps,
                    "seed": seed,
                    "seconds": time.monotonic() - started,
                    "log": log,
                }
                write_atomically(checkpoint, partial(torch.save, state))
                if task.checkpoint is not None:
                    task.checkpoint(ema, done)
    return ema
