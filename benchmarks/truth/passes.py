"""Guidance: full steps of their own for the calls with and without a condition, and guidance within an interval.

`python -m benchmarks.truth.passes flow --groups "0 1 2"`: errors to full computation by the same sampler and the same guidance.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

import rfc
import rfc_fx
from benchmarks.capturing import captured_once
from benchmarks.files import RESULTS
from benchmarks.quality.similarity import relative_l2
from benchmarks.truth.converged import Predict
from benchmarks.truth.lab import Lab, Sampler
from benchmarks.truth.models import Images
from benchmarks.truth.plans import FLOWS, USERS
from benchmarks.truth.rows import Cell, Row, Rows
from benchmarks.truth.solvers import draw
from rfc.method import Method

SHIFTS = (-2, 0, 2, 4)
"""Full steps that calls with a condition have more than the mean, and those without it fewer."""

INTERVAL = 2.0
"""Of |lambda|, within which the output is guided (arXiv 2404.07724); outside, the calls without a condition are left out."""


def named(shift: int, *, within: bool) -> str:
    """A cell's method in words."""
    where = f"guided within {INTERVAL:g}" if within else "guided"
    return f"LogSNR, {where}, {shift:+d}"


class Passes(Lab):
    """A laboratory in which both passes of guidance are calls of their own, "cond" and "uncond"."""

    within = False
    """Whether guidance is left out where |lambda| is above `INTERVAL`."""

    def errors(self, group: str, sampler: Sampler, n: int, shift: int) -> list[float]:
        """To full computation, of LogSNR with n + shift and n - shift full steps."""
        if (key := (group, (sampler, self.within))) not in self._whole:
            self._whole[key] = self.drawn(group, sampler, self._method(sampler, sampler.steps, 0), sampler.steps)
        full = self._whole[key]
        samples = self.drawn(group, sampler, self._method(sampler, n, shift), n)
        return [float(f"{error:.4g}") for error in relative_l2(samples, full).tolist()]

    def _method(self, sampler: Sampler, n: int, shift: int) -> Method:
        return rfc.LogSNR(lambdas=self.lambdas(sampler), is_flow=self.model.is_flow, nfc=n + shift, uncond_nfc=n - shift)

    def drawn(self, group: str, sampler: Sampler, method: Method, n: int) -> Images:
        model, _ = self._transformed(method)
        scheduler, more = self.scheduler_of(sampler)
        with torch.no_grad(), model.generation(source=scheduler):
            samples = draw(self._apart(model), scheduler, self.noise(group), sampler.steps, **more)
        self.nfc = {name: record.nfc for name, record in model.contexts.items()}
        return samples

    def _apart(self, model: rfc_fx.CachedModel) -> Predict:
        called, nothing = self.model.labelled(model), torch.full_like(self.labels, 10)

        def call(name: str, x: Images, time: float, labels: Tensor) -> Images:
            with model.cache_context(name):
                output: Images = called(x, timestep=torch.full((len(x),), time), class_labels=labels).sample
            return output

        def predict(x: Images, time: float) -> Images:
            cond = call("cond", x, time, self.labels)
            if self.within and abs(float(self.levels.lambdas(np.array([time]))[0])) > INTERVAL:
                return cond
            uncond = call("uncond", x, time, nothing)
            return uncond + self.model.guidance * (cond - uncond)

        return predict


def record_of(folder: Path, model: str) -> Path:
    """Where the rows of a model are."""
    return folder / f"{model}-passes.jsonl"


def cell_of(sampler: Sampler, n: int, shift: int, *, within: bool) -> Cell:
    """What is measured: n full steps for each call in the mean."""
    return Cell(solver=sampler.solver, spacing=sampler.spacing, steps=sampler.steps, n=n, method=named(shift, within=within))


def main(
    model: Annotated[str, typer.Argument(help=f"one of {', '.join(FLOWS)}")],
    groups: Annotated[str, typer.Option(help="groups of seeds: choose, 0, 1, ...; separated by spaces")] = "0",
    size: Annotated[int, typer.Option(help="samples of a group", min=2)] = 22,
    out: Annotated[Path, typer.Option(help="folder of the records")] = RESULTS / "truth",
) -> None:
    """Measure what the record does not have: the users' samplers and full steps, guided everywhere and within the interval."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # nothing skipped, in full computation
    rows, lab = Rows(record_of(out, model)), Passes(model, size)
    with captured_once():
        for sampler, budgets in USERS[model].items():
            for n in budgets:
                for lab.within in (False, True):
                    for shift in SHIFTS:
                        cell = cell_of(sampler, n, shift, within=lab.within)
                        for group in groups.split():
                            if (cell, group) not in rows.rows:
                                errors = lab.errors(group, sampler, n, shift)
                                rows.add(Row(cell=cell, group=group, truth=(), full=tuple(errors)))
                                typer.echo(f"{group} {cell} {torch.tensor(errors).log().mean().exp():.4f} {lab.nfc}")


if __name__ == "__main__":
    typer.run(main)
