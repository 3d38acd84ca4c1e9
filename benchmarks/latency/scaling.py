"""Cost of full and estimated steps against tokens, width, depth and batch: `python -m benchmarks.scaling`.

A DiT with random weights; one axis moves, the others stay at 6 blocks of 256, 64 tokens, 1 sample with guidance. At every point compiled
full computation and two estimators (hoisted, compiled) take turns, a generation each; a step's time is the host clock's. Medians with the
10th and 90th percentile; a share is a ratio of medians. `--compile-time` measures seconds of the first full and estimated steps, transform
and compilation included, against depth, each with cold caches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import nn

import rfc
import rfc_fx
from benchmarks.files import write_json, write_text
from benchmarks.latency.compiling import cold, first_runs, frames
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.record import record
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import WORKLOADS, Calls, dit, timesteps_of
from benchmarks.pictures import save
from rfc.phase import ESTIMATE, FULL
from rfc_fx.tools.summary_json import versions

ESTIMATORS: dict[str, rfc.Estimator] = {"Taylor m=1": rfc.Taylor(order=1), "RFE m=1": rfc.RFE(order=1)}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A DiT and its batch."""

    tokens: int = 64
    width: int = 256
    depth: int = 6
    batch: int = 1
    """Samples; guidance doubles them."""


AXES: dict[str, tuple[int, ...]] = {"tokens": (16, 64, 256, 1024), "width": (128, 256, 512), "depth": (3, 6, 12, 24), "batch": (1, 2, 4, 8)}
"""What moves, and over which values."""


QUICK: dict[str, tuple[int, ...]] = {"tokens": (4, 16), "width": (32, 64), "depth": (1, 2), "batch": (1, 2)}


DEPTHS = (12, 28, 57)
"""Blocks whose compilation is timed, 64 wide: those of DiT-S, DiT-XL and FLUX."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every point is measured."""

    base: Point
    steps: int
    nfc: int
    rounds: int
    backend: str


def dit_of(point: Point) -> nn.Module:
    """A DiT of that size with random weights."""
    return dit(point.depth, max(1, point.width // 64), point.width, side=2 * round(point.tokens**0.5))()


def hoisted(model: nn.Module, calls: Calls, plan: rfc.RCS, estimator: rfc.Estimator, *, regional: bool = False) -> rfc_fx.CachedModel:
    """The model transformed, its timesteps prepared."""
    cached = rfc_fx.transform(model, rfc.Method(estimator=estimator, schedule=plan), config=rfc_fx.Config(hoist=True, regional=regional))
    cached.prepare(timesteps_of(calls))
    return cached


def measured(point: Point, settings: Settings) -> dict[str, Any]:
    """Times of all variants at one point."""
    torch._dynamo.reset()
    model, plan, device = dit_of(point), equal_gaps(settings.steps, settings.nfc), torch.device("cpu")
    calls = WORKLOADS["dit-s"].calls(model, point.batch, settings.steps)
    variants = [TimedVariant("full, compiled", torch.compile(model, fullgraph=True, backend=settings.backend))]
    for name, estimator in ESTIMATORS.items():
        cached = hoisted(model, calls, plan, estimator)
        variants.append(TimedVariant(name, torch.compile(cached, fullgraph=True, backend=settings.backend), cached))
    counted = {variant.name: first_runs(variant, calls, plan.warmup, device).estimate_bytes for variant in variants}
    for _ in range(settings.rounds):
        for variant in variants:
            variant.run(calls, device, count=True)
    rows = record(variants, settings.steps, settings.nfc)
    for name in ESTIMATORS:
        rows[name]["estimate_inductor_bytes"] = counted[name]
    return rows


def axis(name: str, values: Iterable[int], settings: Settings, known: dict[Point, dict[str, Any]]) -> list[dict[str, Any]]:
    """One axis: a row for each value; points of another axis are not measured twice."""
    rows = []
    for value in track(list(values), name):
        point = replace(settings.base, **{name: value})
        if point not in known:
            known[point] = measured(point, settings)
        rows.append({name: value, "point": asdict(point), "variants": known[point]})
    return rows


WAYS: dict[str, bool | None] = {"plain model": None, "transformed": False, "transformed, regional": True}
"""What is compiled: whether the transformed model is regional; None for the model as it is."""


def compile_times(depths: Iterable[int], width: int, backend: str) -> list[dict[str, Any]]:
    """Seconds until full and estimated steps have run, by depth and by way to compile."""
    rows = []
    for depth in track(list(depths), "compile time"):
        model = dit_of(Point(width=width, depth=depth))
        calls = WORKLOADS["dit-s"].calls(model, 1, 10)
        rows.append({"depth": depth, "ways": {way: first_seconds(model, regional, calls, backend) for way, regional in WAYS.items()}})
    return rows


def first_seconds(model: nn.Module, regional: bool | None, calls: Calls, backend: str) -> dict[str, float]:
    """Seconds of the transformation and of the first steps, with cold caches, and how many graphs were compiled."""
    plan, before, cached = equal_gaps(10, 4), frames(), None
    with cold(), torch.no_grad():
        start = time.perf_counter()
        if regional is not None:
            cached = hoisted(model, calls, plan, ESTIMATORS["Taylor m=1"], regional=regional)
            cached.trace(**calls[0])
        transformed = time.perf_counter() - start
        run = torch.compile(model if cached is None else cached, fullgraph=True, backend=backend)
        TimedVariant("", run, cached).run(calls[: plan.warmup + 1], torch.device("cpu"), count=False)
        return {"seconds": time.perf_counter() - start, "transform_seconds": transformed, "frames": frames() - before}


def markdown(results: dict[str, Any]) -> str:
    """The axes and the compile times as tables."""
    head = " | ".join(f"{name} ESTIMATE ms | of full" for name in ESTIMATORS)
    lines = []
    for name, rows in results["axes"].items():
        lines += [f"| {name} | full ms | {head} |", "|---" * (2 + 2 * len(ESTIMATORS)) + "|"]
        for row in rows:
            cells = [f"{row['variants']['full, compiled'][FULL.name]['median_ms']:.2f}"]
            for estimator in ESTIMATORS:
                variant = row["variants"][estimator]
                cells += [f"{variant[ESTIMATE.name]['median_ms']:.2f}", f"{variant['estimate_share_of_compiled_full']:.1%}"]
            lines.append(f"| {row[name]} | {' | '.join(cells)} |")
        lines.append("")
    if rows := results["compile_time"]:
        ways = list(rows[0]["ways"])
        lines += [f"| blocks | {' | '.join(f'{way} s' for way in ways)} |", "|---" * (1 + len(ways)) + "|"]
        for row in rows:
            seconds = (f"{row['ways'][way]['seconds']:.1f}" for way in ways)
            lines.append(f"| {row['depth']} | {' | '.join(seconds)} |")
    return "\n".join(lines).rstrip() + "\n"


def draw(axes: dict[str, Any], path: Path) -> None:
    """One panel an axis: medians with the 10th and 90th percentile, both scales logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    lines = {"full, compiled": (FULL.name, "full computation"), **{name: (ESTIMATE.name, f"estimated step, {name}") for name in ESTIMATORS}}
    for panel, name in zip(figure.subplots(2, 2).flat, AXES, strict=True):
        rows = axes.get(name, [])
        panel.set(xlabel=name, ylabel="ms per step", title="" if rows else "not measured", xscale="log", yscale="log")
        for variant, (phase, label) in lines.items():
            times = [row["variants"][variant][phase] for row in rows]
            middle = [t["median_ms"] for t in times]
            spread = [[t["median_ms"] - t["p10_ms"] for t in times], [t["p90_ms"] - t["median_ms"] for t in times]]
            panel.errorbar([row[name] for row in rows], middle, yerr=spread, marker="o", capsize=2, label=label)
        panel.set_xticks([row[name] for row in rows], [str(row[name]) for row in rows])
        panel.xaxis.minorticks_off()
    figure.axes[0].legend(fontsize=8)
    save(figure, path, dpi=120)


def main(
    axes: Annotated[str, typer.Option(help=f"of {', '.join(AXES)}; empty for none")] = ", ".join(AXES),
    rounds: Annotated[int, typer.Option(help="generations of every variant at every point", min=1)] = 5,
    steps: Annotated[int, typer.Option(min=4)] = 14,
    nfc: Annotated[int, typer.Option(help="steps computed in full", min=3)] = 5,
    compile_time: Annotated[bool, typer.Option("--compile-time", help="also time compilation against depth")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="tiny models, for a look at whether it runs")] = False,
    backend: Annotated[str, typer.Option(help="of torch.compile")] = "inductor",
    out: Annotated[Path, typer.Option(help="folder for scaling.json, .md and .png")] = Path("out/scaling"),
) -> None:
    """Measure the cost of steps against the size of a DiT, and write it as JSON, Markdown and a picture."""
    names = [name.strip() for name in axes.split(",") if name.strip()]
    if unknown := [name for name in names if name not in AXES]:
        raise typer.BadParameter(f"unknown axes {', '.join(unknown)}; known: {', '.join(AXES)}")
    base = Point(tokens=16, width=32, depth=1) if quick else Point()
    settings = Settings(base=base, steps=steps, nfc=nfc, rounds=rounds, backend=backend)
    known: dict[Point, dict[str, Any]] = {}
    results: dict[str, Any] = {
        "settings": asdict(settings) | {"threads": torch.get_num_threads(), "versions": versions(), "protocol": __doc__},
        "axes": {name: axis(name, (QUICK if quick else AXES)[name], settings, known) for name in names},
        "compile_time": compile_times((1, 2) if quick else DEPTHS, 32 if quick else 64, backend) if compile_time else [],
    }
    write_json(out / "scaling.json", results)
    write_text(out / "scaling.md", markdown(results))
    draw(results["axes"], out / "scaling.png")
    print(markdown(results))
