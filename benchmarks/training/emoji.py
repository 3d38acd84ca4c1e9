"""Train the emoji model: `python -m benchmarks.training.emoji`, hours of two CPU cores; stop it at any time, `--resume` goes on.

Flow matching (arXiv 2210.02747) on latents computed once for all combinations of emoji, style and background. Muon (torch.optim.Muon) for
the matrices of the transformer's blocks, AdamW for all else; averaged weights; one caption in ten is empty for classifier-free guidance.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.training import emoji_autoencoder, emoji_data
from benchmarks.training.emoji_alignment import train as align
from benchmarks.training.emoji_batches import ALIGNED, Data, Recipe, prepare
from benchmarks.training.emoji_data import caption
from benchmarks.training.emoji_model import (
    LinearInBfloat16,
    TextToImage,
    encode_captions,
    flow_loss,
    is_modulation,
    new_transformer,
    pipeline,
    sample,
)
from benchmarks.training.loop import save_grid
from rfc_fx.io.atomic import write_atomically


class Trainer:
    """Model, averaged model and optimizers; `state` and `restore` hold all that a run needs to go on as if never stopped."""

    def __init__(self, data: Data, recipe: Recipe, seed: int, new_transformer: Callable[[], Any] = new_transformer) -> None:
        torch.manual_seed(seed)
        self.data, self.recipe, self.seed, self.step = data, recipe, seed, 0
        self.model = TextToImage(data.tokenizers, new_transformer()).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        named = list(self.model.named_parameters())
        matrices = [weight for name, weight in named if "blocks." in name and weight.ndim == 2 and not is_modulation(name)]
        others = [weight for name, weight in named if not name.startswith("text_") and all(weight is not matrix for matrix in matrices)]
        text = [weight for name, weight in named if name.startswith("text_")]
        common: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        self.optimizers: tuple[Any, ...] = (
            torch.optim.Muon([{"params": matrices, "share": 1.0}], momentum=0.95, adjust_lr_fn="match_rms_adamw", **common),
            torch.optim.AdamW(
                [{"params": others, "share": 1.0}, {"params": text, "share": recipe.text_share}], betas=recipe.betas, fused=True, **common
            ),
        )

    def train_step(self, progress: float) -> Tensor:
        """One step; its random numbers depend on the seed and the step alone. Returns the loss."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["share"] * self.recipe.rate(self.step, progress)
        batch = self.data.batch(self.recipe)
        with LinearInBfloat16():
            loss = flow_loss(self.model, *batch)
        loss.backward()
        live = list(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            share = 1 - min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
            averaged: list[Tensor] = list(self.average.parameters())
            torch._foreach_lerp_(averaged, list[Tensor](live), share)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def held_out_loss(self, n: int = 128) -> float:
        """Loss of the averaged model on held-out combinations with fixed noise and times."""
        rows, latents = self.data.held_out
        chosen = torch.arange(n) * len(rows) // n
        ids = encode_captions(self.data.tokenizers, [caption(row) for row in rows[chosen].tolist()])
        with LinearInBfloat16():
            return float(flow_loss(self.average, latents[chosen], *ids, generator=torch.Generator().manual_seed(0)))

    def state(self) -> dict[str, Any]:
        """All of it, for `torch.save`."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seed": self.seed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seed = state["step"], state["seed"]


def save_samples(trainer: Trainer, autoencoder: Any, path: Path, steps: int = 14) -> None:
    """A grid of 24 samples: 12 trained combinations above 12 held-out ones."""
    rows = torch.cat([rows[torch.arange(12) * len(rows) // 12 + 7] for rows, _ in (trainer.data.trained, trainer.data.held_out)])
    pipe = pipeline(trainer.average, trainer.data.tokenizers, autoencoder)
    with torch.random.fork_rng(), LinearInBfloat16():
        save_grid(sample(pipe, [caption(row) for row in rows.tolist()], list(range(24)), steps=steps), path, columns=12, zoom=2)


def run(trainer: Trainer, autoencoder: Any, out: Path, *, steps: int, minutes: float | None, console: Console, before: float = 0.0) -> None:
    """Train up to `steps`, or `minutes` of wall time in all; writes checkpoints, a log and grids into `out`."""
    recipe, started, losses = trainer.recipe, time.monotonic() - before, []
    log: list[dict[str, float]] = json.loads((out / "log.json").read_text()) if before else []

    def progress() -> float:
        share = 0.0 if minutes is None else (time.monotonic() - started) / (60 * minutes)
        return max(share, trainer.step / steps)

    while progress() < 1:
        losses.append(trainer.train_step(progress()))
        last = progress() >= 1
        if trainer.step % recipe.report_every == 0 or last:
            minutes_so_far = (time.monotonic() - started) / 60
            batch_loss = float(torch.stack(losses).mean())
            log.append({"step": trainer.step, "minutes": minutes_so_far, "loss": batch_loss, "held_out_loss": trainer.held_out_loss()})
            (out / "log.json").write_text(json.dumps(log, indent=1))
            console.print(", ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))
            losses = []
        if trainer.step % recipe.checkpoint_every == 0 or last:
            state = trainer.state() | {"seconds": time.monotonic() - started}
            write_atomically(out / "checkpoint.pt", partial(torch.save, state))
        if trainer.step % recipe.grid_every == 0 or last:
            save_samples(trainer, autoencoder, out / f"grid-{trainer.step:06d}.png")


def main(
    data: Annotated[Path, typer.Option(help="file of `python -m benchmarks.training.emoji_data`")] = Path("out/emoji.safetensors"),
    out: Annotated[Path, typer.Option(help="folder of checkpoints, grids and the log")] = Path("out/emoji"),
    steps: Annotated[int, typer.Option(help="at most so many", min=1)] = 100_000,
    minutes: Annotated[float | None, typer.Option(help="wall time of the transformer's training in all", min=0.1)] = None,
    autoencoder_minutes: Annotated[float, typer.Option(help="wall time of the autoencoder's training in all", min=0.0)] = 15,
    decoder_minutes: Annotated[float, typer.Option(help="after those, in which the decoder alone learns on; latents stay")] = 0,
    alignment_steps: Annotated[int, typer.Option(help="of the text encoders' alignment with the pictures", min=0)] = 5000,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint in --out")] = False,
    threads: Annotated[int, typer.Option(help="of torch", min=1)] = 2,
) -> None:
    """Train the autoencoder and align the text encoders if --out has none, then train text encoders and transformer."""
    torch.set_num_threads(threads)
    console = Console(width=140)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() != resume:
        there = "exists; pass --resume to go on, or another --out" if checkpoint.exists() else "is missing; leave out --resume"
        raise typer.BadParameter(f"{checkpoint} {there}")
    icons = emoji_data.load(data)
    if not (out / "autoencoder.pt").exists():
        emoji_autoencoder.train(icons, out, autoencoder_minutes, seed, console)
    if decoder_minutes:
        emoji_autoencoder.train(icons, out, autoencoder_minutes + decoder_minutes, seed, console, decoder_only=True)
    autoencoder = emoji_autoencoder.load(out)
    trainer, before = Trainer(prepare(autoencoder, icons, out), Recipe(), seed), 0.0
    align(trainer.model, lambda size: trainer.data.batch(ALIGNED, size), out / "text.pt", alignment_steps, console, seed)
    trainer.average.load_state_dict(trainer.model.state_dict())
    if resume:
        state = torch.load(checkpoint, weights_only=True)
        trainer.restore(state)
        before = state["seconds"]
    run(trainer, autoencoder, out, steps=steps, minutes=minutes, console=console, before=before)


if __name__ == "__main__":
    typer.run(main)
