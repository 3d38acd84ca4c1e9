"""Train the predictor that ships in `rfc_fx/zoo/digits_predictor`: `python -m benchmarks.train_predictor`.

DisCa (arXiv 2602.05449) on the shipped digits model: whole trajectories of few DDIM steps give pairs of steps, of which the predictor
sees the earlier stream behind the blocks and the later latent. Half of the trajectories are moved by the predictor itself where it would
stand in, so that it learns on the latents it leads to. The loss is the squared error of the stream and of what the last layer makes of
it, weighed by how far they moved: else late steps would drown the early ones. The published adversarial stage and the distillation of the
sampler are left out. Stopped, it goes on from its last checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import rfc
import rfc_fx
from benchmarks.files import read_json, write_json, write_text
from benchmarks.training.predictor_card import model_card
from benchmarks.training.predictor_loop import CFG, train
from rfc.predictor import Predictor
from rfc_fx.io.predictor import write_predictor
from rfc_fx.zoo import DIGITS_PREDICTOR, NULL_CLASS, digits_noise, load_digits, sample

LISTS = {
    (20, "10 anchors, published"): (0, 1, 2, 5, 9, 11, 13, 15, 17, 19),
    (20, "7 anchors"): (0, 1, 5, 9, 13, 17, 19),
    (8, "4 anchors, published"): (0, 2, 4, 7),
    (8, "5 anchors"): (0, 1, 3, 5, 7),
}
"""What is measured: steps and the full ones among them."""


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
            cached = rfc_fx.transform(model, made)
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
    write_json(work / "figures.json", rows)
    if (work / "log.json").exists():
        write_text(out / "README.md", model_card(rows, read_json(work / "log.json"), blocks, seed, LISTS))
