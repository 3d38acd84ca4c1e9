"""Seconds and FLOPs of the contenders: `python -m benchmarks.truth.timing digits`.

In each round every contender draws the same batch once, its sampler's own arithmetic included, and the plain model makes one step, all
compiled by Inductor, in one process. A round that compiles comes first and does not count. Work that needs no latent is hoisted nowhere:
that would serve plain steps as well. FLOPs are those that the plan counts, in full steps. Fitted and refined lists are timed with other
weights and at LogSNR's full steps, which changes the work of no step, and by the blocks' residual, the dearest that they may forecast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import rfc_fx
from benchmarks.capturing import captured_once
from benchmarks.files import RESULTS, Record, read_json, write_json
from benchmarks.latency.timing import compiled_alone, figures
from benchmarks.truth.contenders import LOG_SNR, all_contenders
from benchmarks.truth.converged import guided
from benchmarks.truth.lab import Lab, Sampler
from benchmarks.truth.models import MODELS
from benchmarks.truth.plans import CORRECTED
from benchmarks.truth.rows import PLAIN, Cell, Rows
from benchmarks.truth.solvers import draw
from rfc.estimators.base import MOST_ORDER
from rfc.estimators.linear_prediction import LinearPrediction
from rfc.method import Method, programs_of
from rfc.placement.weighted import unfitted
from rfc.schedules.base import NoiseLevels
from rfc_fx.tools.summary_json import versions

RECORD = "timing.json"

GROUP = "0"
"""Of seeds, that all draw."""

FITTED_ORDER = 3
"""Weights of a step in a fitted list; a refined one has as many as full steps."""


@dataclass
class Way:
    """A contender, what draws with it, and its seconds."""

    contender: str
    cell: Cell
    run: Callable[[], Any]
    """One generation."""
    model: rfc_fx.CachedModel | None = None
    method: Method | None = None
    times_ms: list[float] = field(default_factory=list)

    @torch.no_grad()
    def timed(self, *, count: bool) -> None:
        """One generation; AssertionError where it has another number of full steps."""
        if self.model is not None and self.method is not None:
            self.model.method = self.method
        with nullcontext() if self.model is None else self.model.generation():
            start = time.perf_counter()
            self.run()
            elapsed_ms = (time.perf_counter() - start) * 1e3
        if self.model is not None and self.model.stats.nfc != self.cell.n:
            raise AssertionError(f"{self.cell} computed {self.model.stats.nfc} steps in full")
        if count:
            self.times_ms.append(elapsed_ms)

    @property
    def flops(self) -> float:
        """Of a generation, in full steps."""
        skipped = 0.0 if self.model is None else (self.cell.steps - self.cell.n) * self.model.plan().estimate_share
        return self.cell.n + skipped

    def row(self) -> Record:
        """What is told of it."""
        return {"contender": self.contender, "cell": asdict(self.cell), "flops_full_steps": self.flops, **figures(self.times_ms)}


class Ways:
    """The ways to draw with a model; those on the same programs share what is compiled."""

    def __init__(self, lab: Lab, compiled: Callable[[Any], Any]) -> None:
        self.lab, self.compiled = lab, compiled
        self.plain = compiled(lab.transformer)
        self.noise = lab.noise(GROUP)
        self._cached: dict[Any, tuple[rfc_fx.CachedModel, Any]] = {}

    def predict(self, call: Any) -> Callable[[Any, float], Any]:
        return guided(self.lab.model.labelled(call), self.lab.labels, self.lab.model.guidance)

    def step(self, cell: Cell) -> Way:
        """One step of the plain model with guidance, at the first time of a sampler."""
        scheduler, more = self.lab.scheduler_of(_sampler(cell))
        scheduler.set_timesteps(cell.steps, **more) if more else scheduler.set_timesteps(cell.steps)
        first, predict = float(scheduler.timesteps[0]), self.predict(self.plain)
        return Way("one step", cell, lambda: predict(self.noise, first))

    def way(self, contender: str, cell: Cell) -> Way:
        """A contender's."""
        method = None if cell.method == PLAIN else self.method(contender, cell)
        model, call = (None, self.plain) if method is None else self._transformed(method)
        scheduler, more = self.lab.scheduler_of(_sampler(cell))
        predict = self.predict(call)
        return Way(contender, cell, lambda: draw(predict, scheduler, self.noise, cell.steps, **more), model, method)

    def method(self, contender: str, cell: Cell) -> Method:
        """The cell's own, or one that does the same work."""
        if contender == LOG_SNR:
            return self.lab.method(cell.method, _sampler(cell), cell.n)
        order = FITTED_ORDER if cell.method in CORRECTED else min(cell.n, MOST_ORDER)
        levels = NoiseLevels(self.lab.lambdas(_sampler(cell)), None, self.lab.model.is_flow)
        schedule = unfitted(levels, cell.n, order)
        return Method(estimator=LinearPrediction(order=order), schedule=schedule, granularity="stack", name=contender)

    def _transformed(self, method: Method) -> tuple[rfc_fx.CachedModel, Any]:
        key = programs_of(method)
        if key not in self._cached:
            model = rfc_fx.transform(self.lab.transformer, method)
            self._cached[key] = model, self.compiled(model)
        return self._cached[key]


def _sampler(cell: Cell) -> Sampler:
    return Sampler(cell.solver, cell.spacing, cell.steps)


def main(
    model: Annotated[str, typer.Argument(help=f"one of {', '.join(MODELS)}")],
    rounds: Annotated[int, typer.Option(help="counted generations of every contender", min=1)] = 20,
    samples: Annotated[int, typer.Option(help="of a batch; guidance doubles it", min=1)] = 4,
    backend: Annotated[str, typer.Option(help="of torch.compile")] = "inductor",
    out: Annotated[Path, typer.Option(help="folder of the record")] = RESULTS / "truth",
) -> None:
    """Time the contenders of a model; its part of the record is written anew after each round."""
    if model not in MODELS:
        raise typer.BadParameter(f"{model}: expected one of {', '.join(MODELS)}")
    torch.set_num_threads(1)
    settings = {"samples": samples, "threads": 1, "backend": backend, "load_average": os.getloadavg()[0], "versions": versions()}
    ways = Ways(Lab(model, samples), partial(compiled_alone, backend=backend))
    cells = all_contenders(model, Rows(RESULTS / "truth" / f"{model}.jsonl"))
    with captured_once():
        step, *contenders = every = [ways.step(next(iter(cells))), *(ways.way(name, cell) for cell, name in cells.items())]
        for number in range(rounds + 1):
            for way in every:
                way.timed(count=number > 0)
            if number == 0:
                typer.echo("compiled")
                continue
            path = out / RECORD
            known = read_json(path) if path.exists() else {}
            measured = {"settings": settings, "step": figures(step.times_ms), "rows": [way.row() for way in contenders]}
            write_json(path, known | {model: measured})
            typer.echo(f"round {number} of {rounds}")


if __name__ == "__main__":
    typer.run(main)
