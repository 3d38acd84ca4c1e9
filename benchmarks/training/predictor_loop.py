"""Training of the predictor on trajectories of few steps, half of them moved by the predictor itself."""

from __future__ import annotations

import copy
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from benchmarks.files import write_json
from benchmarks.training.predictor_model import Centered, new_predictor, open_projections
from rfc.eager.predictor import skipping
from rfc.granularity import block_modules
from rfc.predictor import Predictor
from rfc_fx.io.atomic import write_atomically
from rfc_fx.zoo import NULL_CLASS, load_digits

STEP_COUNTS = (20, 8, 20, 14)
"""Steps of the trajectories, in turns."""


GAPS = (0.4, 0.25, 0.2, 0.15)
"""How often the anchor lies 1, 2, 3, 4 steps back."""


SAMPLES, BATCH, CFG = 32, 64, 1.5
"""Samples of a trajectory (twice as many rows: both halves of guidance), rows of an iteration, guidance."""


RATES = {"blocks": 1e-3, "project_in": 3e-4, "project_out": 3e-4}


WARMUP, EMA, USES, KEPT = 50, 0.99, 2.4, 4
"""Iterations of warm-up; of the averaged weights; iterations for each step of a trajectory; trajectories in memory."""


class Trajectories(NamedTuple):
    """Full computations along a generation: latents, streams behind the blocks and outputs, by step and row."""

    x: Float[Tensor, "S N C H W"]
    stream: Float[Tensor, "S N T D"]
    output: Float[Tensor, "S N C H W"]
    timesteps: Tensor
    labels: Tensor


@torch.no_grad()
def draw(model: Any, scheduler: Any, predictor: Predictor | None, steps: int) -> Trajectories:
    """One batch of generations; with a predictor, its forecasts move the latent at random stretches of steps."""
    labels = torch.randint(0, NULL_CLASS, (SAMPLES,))
    both = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
    scheduler.set_timesteps(steps)
    latent = torch.randn(SAMPLES, 1, 8, 8)
    streams: list[Tensor] = []
    rows: list[tuple[Tensor, Tensor]] = []
    anchor, until = 0, 0
    hook = block_modules(model)[-1][1].register_forward_hook(lambda module, args, output: streams.append(output))
    try:
        for index, t in enumerate(scheduler.timesteps):
            x = torch.cat([latent, latent])
            output = moved = model(x, timestep=t.expand(len(both)), class_labels=both).sample
            rows.append((x, output))
            if predictor is not None and index < until:
                count = len(streams)
                with skipping(model, predictor, lambda: streams[anchor], lambda h: None):  # noqa: B023
                    moved = model(x, timestep=t.expand(len(both)), class_labels=both).sample
                del streams[count:]
            else:
                anchor, until = index, index + 1 + int(torch.randint(0, len(GAPS), ()))
            cond, uncond = moved.chunk(2)
            latent = scheduler.step(uncond + CFG * (cond - uncond), t, latent).prev_sample
    finally:
        hook.remove()
    x, output = (torch.stack(one) for one in zip(*rows, strict=True))
    return Trajectories(x, torch.stack(streams), output, scheduler.timesteps.clone(), both)


def loss_of(model: Any, predictor: Predictor, trajectories: Trajectories) -> Tensor:
    """Squared error of the stream and of the output over BATCH random pairs of steps.

    The last step, where the stream is of another size, is full in every published list and is never a target.
    """
    steps, rows = trajectories.x.shape[:2]
    gap = torch.multinomial(torch.tensor(GAPS), BATCH, replacement=True) + 1
    row = torch.randint(0, rows, (BATCH,))
    step = torch.randint(1, steps - 1, (BATCH,))
    then = step - torch.minimum(gap, step)
    streams: list[Tensor] = []
    with skipping(model, predictor, lambda: trajectories.stream[then, row], streams.append):
        output = model(trajectories.x[step, row], timestep=trajectories.timesteps[step], class_labels=trajectories.labels[row]).sample
    stream = relative(streams[0], trajectories.stream[step, row], trajectories.stream[then, row])
    return stream + relative(output, trajectories.output[step, row], trajectories.output[then, row])


def relative(prediction: Tensor, target: Tensor, before: Tensor) -> Tensor:
    """Mean over rows of |got - wanted|^2 / (|wanted - before| |wanted|): between absolute errors and those that make reuse 1."""
    prediction, target, before = prediction.flatten(1), target.flatten(1), before.flatten(1)
    scale = (target - before).norm(dim=1) * target.norm(dim=1)
    mean: Tensor = ((prediction - target).square().sum(1) / scale).mean()
    return mean


def train(work: Path, minutes: float, blocks: int, seed: int, console: Console) -> Predictor:
    """Train for so many minutes of wall time in all, or go on; return the predictor with averaged weights."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    model, scheduler = load_digits()
    model.requires_grad_(False)
    torch.manual_seed(seed)
    predictor = new_predictor(model, blocks).train()
    groups = [{"params": list(predictor.get_submodule(name).parameters()), "lr": rate, "rate": rate} for name, rate in RATES.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ema = copy.deepcopy(predictor)
    rounds, done, before = 0, 0, 0.0
    log: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["blocks"] != blocks:
            raise typer.BadParameter(f"{checkpoint} was made with --blocks {state['blocks']}, called with {blocks}; pass another --work")
        for part, name in ((predictor, "predictor"), (ema, "ema"), (optimizer, "optimizer")):
            part.load_state_dict(state[name])
        rounds, done, before, log = state["rounds"], state["done"], state["seconds"], state["log"]
    started = time.monotonic() - before

    def share() -> float:
        return min(1.0, (time.monotonic() - started) / (60 * minutes))

    trajectories: list[Trajectories] = []
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        shown = bar.add_task("training", total=1.0)
        while share() < 1:
            torch.manual_seed(seed * 1_000_003 + rounds)  # the random numbers of a round depend on nothing before it
            steps = STEP_COUNTS[rounds % len(STEP_COUNTS)]
            follows = rounds >= len(STEP_COUNTS) and rounds // len(STEP_COUNTS) % 2 == 1
            trajectories = [*trajectories[-KEPT + 1 :], draw(model, scheduler, ema if follows else None, steps)]
            if done == 0:
                open_projections(predictor, trajectories[-1].stream[:-1])
                ema.load_state_dict(predictor.state_dict())
            losses = []
            for _ in range(round(USES * steps)):
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * min(1.0, (done + 1) / WARMUP) * (1 - share()) ** 0.5
                loss = loss_of(model, predictor, trajectories[int(torch.randint(0, len(trajectories), ()))])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    averaged: list[Tensor] = list(ema.parameters())
                    torch._foreach_lerp_(averaged, list[Tensor](predictor.parameters()), 1 - min(EMA, (1 + done) / (10 + done)))
                done += 1
                losses.append(float(loss.detach()))
                bar.update(shown, completed=share(), description=f"iteration {done}, loss {losses[-1]:.4f}")
            rounds += 1
            minutes_now = (time.monotonic() - started) / 60
            log.append({"round": rounds, "iterations": done, "minutes": minutes_now, "loss": sum(losses) / len(losses), "steps": steps})
            console.print(", ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))
            state = {"predictor": predictor.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(), "blocks": blocks}
            state |= {"rounds": rounds, "done": done, "seconds": time.monotonic() - started, "log": log}
            write_atomically(checkpoint, partial(torch.save, state))
            write_json(work / "log.json", log)
    assert isinstance(ema.project_out, Centered)
    ema.project_out = ema.project_out.folded()
    return ema
