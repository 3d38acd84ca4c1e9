"""Train the predictor that ships in `rfc_fx/zoo/digits_predictor`: `python -m benchmarks.train_predictor`.

DisCa (arXiv 2602.05449) on the shipped digits model: whole trajectories of few DDIM steps give pairs of steps, of which the predictor
sees the earlier stream behind the blocks and the later latent. Half of the trajectories are moved by the predictor itself where it would
stand in, so that it learns on the latents it leads to. The loss is the squared error of the stream and of what the last layer makes of
it, weighed by how far they moved: else late steps would drown the early ones. The published adversarial stage and the distillation of the
sampler are left out. Stopped, it goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import rfc
import rfc_fx
from rfc.eager.predictor import skipping
from rfc.granularity import block_modules
from rfc.predictor import Predictor
from rfc_fx.io.atomic import write_atomically
from rfc_fx.io.predictor import write_predictor
from rfc_fx.zoo import DIGITS_PREDICTOR, NULL_CLASS, digits_noise, load_digits, sample

STEP_COUNTS = (20, 8, 20, 14)
"""Steps of the trajectories, in turns."""


GAPS = (0.4, 0.25, 0.2, 0.15)
"""How often the anchor lies 1, 2, 3, 4 steps back."""


SAMPLES, BATCH, CFG = 32, 64, 1.5
"""Samples of a trajectory (twice as many rows: both halves of guidance), rows of an iteration, guidance."""


RATES = {"blocks": 1e-3, "project_in": 3e-4, "project_out": 3e-4}


WARMUP, EMA, USES, KEPT = 50, 0.99, 2.4, 4
"""Iterations of warm-up; of the averaged weights; iterations for each step of a trajectory; trajectories in memory."""


LISTS = {
    (20, "10 anchors, published"): (0, 1, 2, 5, 9, 11, 13, 15, 17, 19),
    (20, "7 anchors"): (0, 1, 5, 9, 13, 17, 19),
    (8, "4 anchors, published"): (0, 2, 4, 7),
    (8, "5 anchors"): (0, 1, 3, 5, 7),
}
"""What is measured: steps and the full ones among them."""


class Trajectories(NamedTuple):
    """Full computations along a generation: latents, streams behind the blocks and outputs, by step and row."""

    x: Float[Tensor, "S N C H W"]
    stream: Float[Tensor, "S N T D"]
    output: Float[Tensor, "S N C H W"]
    timesteps: Tensor
    labels: Tensor


class Centered(torch.nn.Linear):
    """A linear layer of inputs far from zero, trained as one of inputs around zero."""

    center: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("center", torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x - self.center, self.weight, self.bias)

    def folded(self) -> torch.nn.Linear:
        """The same as a plain layer."""
        plain = torch.nn.Linear(self.in_features, self.out_features)
        with torch.no_grad():
            plain.weight.copy_(self.weight)
            plain.bias.copy_(self.bias - self.weight @ self.center)
        return plain


def new_predictor(model: Any, blocks: int) -> Predictor:
    """A predictor that begins as reuse: the projections hand the cache on (as far as SiLU lets them), the gates of the blocks are shut."""
    _, last = block_modules(model)[-1]
    width = model.inner_dim
    predictor = Predictor(last, width, blocks).requires_grad_(True)
    predictor.blocks = torch.nn.ModuleList(copy.deepcopy(block) for _, block in block_modules(model)[-blocks:]).requires_grad_(True)
    predictor.project_out = Centered(width, width)
    for block in predictor.blocks:
        gates: Any = block
        for part in (gates.norm1.linear.weight, gates.norm1.linear.bias):
            part.data.unflatten(0, (6, width))[[2, 5]] = 0.0
        gates.norm1.emb.class_embedder.dropout_prob = 0.0
    return predictor


def open_projections(predictor: Predictor, stream: Float[Tensor, "S N T D"]) -> None:
    """W_in = [~0, 1], W_out = 1, with biases that move the stream to where SiLU is nearly linear: the predictor begins as reuse."""
    width = predictor.channels
    flat = stream.flatten(0, 2)
    mean = flat.mean(0)
    layer = predictor.project_out
    assert isinstance(layer, Centered)
    lift = 4 * flat.std(0) + 6
    with torch.no_grad():
        torch.nn.init.normal_(predictor.project_in.weight, std=0.001)
        predictor.project_in.weight[:, width:].add_(torch.eye(width))
        predictor.project_in.bias.copy_(lift - mean)
        predictor.project_out.weight.copy_(torch.eye(width))
        predictor.project_out.bias.copy_(mean)
        layer.center.copy_(lift)


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
        for place, t in enumerate(scheduler.timesteps):
            x = torch.cat([latent, latent])
            output = moved = model(x, timestep=t.expand(len(both)), class_labels=both).sample
            rows.append((x, output))
            if predictor is not None and place < until:
                kept = len(streams)
                with skipping(model, predictor, lambda: streams[anchor], lambda h: None):  # noqa: B023
                    moved = model(x, timestep=t.expand(len(both)), class_labels=both).sample
                del streams[kept:]
            else:
                anchor, until = place, place + 1 + int(torch.randint(0, len(GAPS), ()))
            cond, uncond = moved.chunk(2)
            latent = scheduler.step(uncond + CFG * (cond - uncond), t, latent).prev_sample
    finally:
        hook.remove()
    x, output = (torch.stack(one) for one in zip(*rows, strict=True))
    return Trajectories(x, torch.stack(streams), output, scheduler.timesteps.clone(), both)


def loss_of(model: Any, predictor: Predictor, made: Trajectories) -> Tensor:
    """Squared error of the stream and of the output over BATCH random pairs of steps.

    The last step, where the stream is of another size, is full in every published list and is never a target.
    """
    steps, rows = made.x.shape[:2]
    gap = torch.multinomial(torch.tensor(GAPS), BATCH, replacement=True) + 1
    row = torch.randint(0, rows, (BATCH,))
    step = torch.randint(1, steps - 1, (BATCH,))
    then = step - torch.minimum(gap, step)
    found: list[Tensor] = []
    with skipping(model, predictor, lambda: made.stream[then, row], found.append):
        output = model(made.x[step, row], timestep=made.timesteps[step], class_labels=made.labels[row]).sample
    stream = relative(found[0], made.stream[step, row], made.stream[then, row])
    return stream + relative(output, made.output[step, row], made.output[then, row])


def relative(got: Tensor, wanted: Tensor, before: Tensor) -> Tensor:
    """Mean over rows of |got - wanted|^2 / (|wanted - before| |wanted|): between absolute errors and those that make reuse 1."""
    got, wanted, before = got.flatten(1), wanted.flatten(1), before.flatten(1)
    scale = (wanted - before).norm(dim=1) * wanted.norm(dim=1)
    mean: Tensor = ((got - wanted).square().sum(1) / scale).mean()
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

    kept: list[Trajectories] = []
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        shown = bar.add_task("training", total=1.0)
        while share() < 1:
            torch.manual_seed(seed * 1_000_003 + rounds)  # the random numbers of a round depend on nothing before it
            steps = STEP_COUNTS[rounds % len(STEP_COUNTS)]
            follows = rounds >= len(STEP_COUNTS) and rounds // len(STEP_COUNTS) % 2 == 1
            kept = [*kept[-KEPT + 1 :], draw(model, scheduler, ema if follows else None, steps)]
            if done == 0:
                open_projections(predictor, kept[-1].stream[:-1])
                ema.load_state_dict(predictor.state_dict())
            losses = []
            for _ in range(round(USES * steps)):
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * min(1.0, (done + 1) / WARMUP) * (1 - share()) ** 0.5
                loss = loss_of(model, predictor, kept[int(torch.randint(0, len(kept), ()))])
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
            write_atomically(work / "log.json", partial(_write_text, json.dumps(log, indent=1)))
    assert isinstance(ema.project_out, Centered)
    ema.project_out = ema.project_out.folded()
    return ema


def _write_text(text: str, path: Path) -> None:
    path.write_text(text)


def ship(model: Any, predictor: Predictor, out: Path) -> None:
    """Write float16 weights; the projections, whose biases are large, in float32."""
    write_predictor(out, model, predictor, {"": torch.float16, "project_": torch.float32})


def methods(predictor: Path, anchors: tuple[int, ...]) -> dict[str, rfc.Method]:
    """What is compared, all with the same full steps."""
    listed = rfc.Listed(full_steps=anchors)
    return {
        "DisCa": rfc.DisCa(predictor=predictor, full_steps=anchors),
        "FORA (reuse)": rfc.Method(estimator=rfc.Reuse(), schedule=listed),
        "TaylorSeer, order 1": rfc.Method(estimator=rfc.Taylor(order=1), schedule=listed),
        "TaylorSeer, order 2": rfc.Method(estimator=rfc.Taylor(order=2), schedule=listed),
        "TaylorSeer-Lite, order 1": rfc.Method(estimator=rfc.Taylor(order=1), schedule=listed, granularity="output"),
        "TaylorSeer-Lite, order 2": rfc.Method(estimator=rfc.Taylor(order=2), schedule=listed, granularity="output"),
        "reuse of the output": rfc.Method(estimator=rfc.Reuse(), schedule=listed, granularity="output"),
    }


def evaluate(predictor: Path, samples: int, console: Console) -> list[dict[str, Any]]:
    """Closed-loop relative L2 against full computation of the same seeds, for every list and method; cost in FLOPs."""
    model, scheduler = load_digits()
    labels = torch.arange(samples) % NULL_CLASS
    noise = digits_noise(list(range(50_000, 50_000 + samples)))
    rows: list[dict[str, Any]] = []
    for (steps, name), anchors in LISTS.items():
        full = sample(model, scheduler, labels, noise, steps=steps, cfg=CFG)
        for method, made in methods(predictor, anchors).items():
            cached = rfc_fx.transform(model, method=made)
            got = sample(cached, scheduler, labels, noise, steps=steps, cfg=CFG)
            share = cached.plan().estimate_share
            error = (got - full).flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)
            rows.append(
                {
                    "steps": steps,
                    "list": name,
                    "anchors": list(anchors),
                    "method": method,
                    "relative_l2": float(error.mean()),
                    "relative_l2_median": float(error.median()),
                    "samples": samples,
                    "estimate_share": share,
                    "cost": (len(anchors) + (steps - len(anchors)) * share) / steps,
                }
            )
            console.print(f"{steps} steps, {name}: {method}: {rows[-1]['relative_l2']:.4f}, cost {rows[-1]['cost']:.3f}")
    return rows


def model_card(rows: list[dict[str, Any]], log: list[dict[str, float]], blocks: int, seed: int) -> str:
    """The card: what it is, how it was made, and what was measured, good or bad."""
    last = log[-1]
    names = list(dict.fromkeys(row["method"] for row in rows))
    lists = list(dict.fromkeys((row["steps"], row["list"]) for row in rows))
    at = {(row["steps"], row["list"], row["method"]): row for row in rows}
    heads = " | ".join(f"{steps} steps, {name}" for steps, name in lists)
    lines = [f"| method | {heads} |", "|---|" + "---|" * len(lists)]
    for method in names:
        cells = (at[steps, name, method] for steps, name in lists)
        lines.append(f"| {method} | " + " | ".join(f"{row['relative_l2']:.4f} ({row['cost']:.2f})" for row in cells) + " |")
    anchors = "; ".join(f"{steps} steps, {name}: {' '.join(map(str, LISTS[steps, name]))}" for steps, name in lists)
    share = next(row["estimate_share"] for row in rows if row["method"] == "DisCa")
    count, drawn = rows[0]["samples"], ", ".join(map(str, sorted(set(STEP_COUNTS))))
    return f"""# A predictor for the digits model (DisCa, arXiv 2602.05449)

At a skipped step h = blocks(W_out SiLU(W_in [embedded tokens, cache])) stands in the place of the digits model's 8 blocks; the
cache is the stream behind the blocks at the last full step, and the {blocks} blocks are of the model's own class. On a model of 8 blocks
that is no small network: a skipped step costs {share:.0%} of a full one's FLOPs (published: under 4 % of the parameters of models
that are far deeper).

Relative L2 distance of the samples to those of full computation, |x - x_full| / |x_full|, mean over {count} samples (closed
loop: each method moves its own latent; DDIM, CFG {CFG}, seeds not trained on); in brackets the FLOPs of a generation as a share of
full computation. All rows of a column compute the same steps in full. Smaller is better. A skipped step of the others is nearly free,
so at equal cost they may have one more full step in eight, three in twenty: compare columns too.

{chr(10).join(lines)}

Full steps: {anchors}.

Made with `python -m benchmarks.train_predictor`: {last["iterations"]:.0f} iterations of {BATCH} rows in {last["minutes"]:.0f} minutes
on one CPU core, seed {seed}, on {last["round"]:.0f} batches of trajectories of {drawn} DDIM steps, half of them moved by the predictor
itself. Squared error of the stream and of the model's output; the published adversarial stage and the distilled sampler are left out.
Weights in float16, the two projections in float32. Measured again with `python -m benchmarks.train_predictor --evaluate-only`.

Limits: for the digits model alone (another is refused). The last step of a list should be full, as in all published lists: it was never a
target of the training.
"""


def main(
    work: Annotated[Path, typer.Option(help="folder of the checkpoint and the log")] = Path("out/train_predictor"),
    out: Annotated[Path, typer.Option(help="folder that gets the predictor and its card")] = DIGITS_PREDICTOR,
    minutes: Annotated[float, typer.Option(help="wall time of training, on one core", min=0.01)] = 12.0,
    blocks: Annotated[int, typer.Option(help="blocks of the predictor; published: 2", min=1)] = 2,
    seed: int = 0,
    samples: Annotated[int, typer.Option(help="samples of each measurement", min=10)] = 100,
    evaluate_only: Annotated[bool, typer.Option("--evaluate-only", help="measure the predictor in --out again")] = False,
) -> None:
    """Train the predictor of the digits model, ship its averaged weights, and measure them in closed loop."""
    console = Console()
    if not evaluate_only:
        model, _ = load_digits()
        ship(model, train(work, minutes, blocks, seed, console), out)
    work.mkdir(parents=True, exist_ok=True)
    rows = evaluate(out, samples, console)
    write_atomically(work / "figures.json", partial(_write_text, json.dumps(rows, indent=1)))
    if (work / "log.json").exists():
        write_atomically(
            out / "README.md", partial(_write_text, model_card(rows, json.loads((work / "log.json").read_text()), blocks, seed))
        )
