"""Frechet distances to real pictures beside the errors: `python -m benchmarks.truth.distances digits`.

The converged solution, full computation and the contenders, by the features of the classifier of the model's data. All draw the same
seeds, so how far a distance lies above the converged solution's is better known than either: it has the interval of a paired bootstrap.
Rows that the record has are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated

import torch
import typer
from jaxtyping import Float
from torch import Tensor

from benchmarks.capturing import captured_once
from benchmarks.files import RESULTS
from benchmarks.quality.frechet import Moments, frechet, moments
from benchmarks.quality.similarity import relative_l2
from benchmarks.quality.workloads import WORKLOADS, classifier
from benchmarks.truth.contenders import ALL_STEPS, LOG_SNR, PLAIN_STEPS, contenders
from benchmarks.truth.lab import Lab, Sampler
from benchmarks.truth.models import Images
from benchmarks.truth.plans import BUDGETS
from benchmarks.truth.rows import PLAIN, Cell, Rows

DATA = {"digits": "digits", "flow": "digits", "shapes": "shapes"}
"""Whose real pictures and classifier judge a model; no classifier of emoji ships."""

RECORD = "distances.jsonl"

CONVERGED, REAL, IN_FULL = "converged solution", "real pictures", "all steps of LogSNR's sampler"
"""What distances are compared with: the solution, as many real pictures, and full computation by a sampler that LogSNR caches."""

RESAMPLES = 200
"""Of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """What is told of the samples of one model by one contender."""

    model: str
    contender: str
    cell: Cell | None
    """None of the solution and of real pictures."""
    samples: int
    truth: float | None
    """Geometric mean of the relative L2 to the converged solution; None of that itself and of real pictures."""
    full: float | None
    """The same to full computation by the same sampler; None where nothing is cached."""
    frechet: float
    """Squared distance to the real pictures, by the features of the classifier's last layer but one."""
    above: tuple[float, float, float] | None
    """How much that is above the converged solution's, and its 95 % interval."""


class Distances:
    """The rows of a file, written as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Distance] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            values = json.loads(line)
            cell, above = values["cell"], values["above"]
            self.rows.append(Distance(**values | {"cell": cell and Cell(**cell), "above": above and tuple(above)}))

    def has(self, model: str, contender: str, cell: Cell | None) -> bool:
        """Whether it was measured."""
        return any((row.model, row.contender, row.cell) == (model, contender, cell) for row in self.rows)

    def add(self, row: Distance) -> None:
        """Keep a row, and append it to the file."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


class Judge:
    """Distances of samples to a model's real pictures."""

    def __init__(self, model: str, lab: Lab, groups: list[str]) -> None:
        self.model, self.lab, self.groups = model, lab, groups
        self.classifier = classifier(DATA[model])
        self.pictures = WORKLOADS[DATA[model]].real()

    @cached_property
    def real(self) -> Moments:
        return moments(self.features(self.pictures))

    @cached_property
    def converged(self) -> Float[Tensor, "N D"]:
        return self.features(self._every(None))

    @torch.no_grad()
    def features(self, images: Images) -> Float[Tensor, "N D"]:
        return torch.cat([self.classifier.features(part) for part in images.split(500)])

    def few_real(self) -> Distance:
        """As many real pictures, drawn without replacement: the least that a distance of so many can be expected to be."""
        count = self.lab.size * len(self.groups)
        chosen = torch.randperm(len(self.pictures), generator=torch.Generator().manual_seed(0))[:count]
        return self._row(REAL, None, self.pictures[chosen], None)

    def row(self, contender: str, cell: Cell | None) -> Distance:
        """Of the converged solution, or of a cell."""
        samples = self._every(cell)
        full = None if cell is None or cell.method == PLAIN else self._every(Cell(**asdict(cell) | {"method": PLAIN, "n": cell.steps}))
        return self._row(contender, cell, samples, full)

    def _every(self, cell: Cell | None) -> Images:
        return torch.cat([self._drawn(cell, group) for group in self.groups])

    def _drawn(self, cell: Cell | None, group: str) -> Images:
        if cell is None:
            return self.lab.truth(group)
        sampler = Sampler(cell.solver, cell.spacing, cell.steps)
        if cell.method == PLAIN:
            return self.lab.full(group, sampler)
        return self.lab.drawn(group, sampler, self.lab.method(cell.method, sampler, cell.n), cell.n)

    def _row(self, contender: str, cell: Cell | None, samples: Images, full: Images | None) -> Distance:
        own = self.features(samples)
        return Distance(
            model=self.model,
            contender=contender,
            cell=cell,
            samples=len(own),
            truth=None if cell is None else _error(samples, self._every(None)),
            full=None if full is None else _error(samples, full),
            frechet=_rounded(frechet(self.real, moments(own))),
            above=None if cell is None else above(own, self.converged, self.real),
        )


def above(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"], real: Moments, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """The squared distance of a to real pictures less that of b, and its interval where the pairs of rows are drawn anew."""
    generator = torch.Generator().manual_seed(0)
    value = frechet(real, moments(a)) - frechet(real, moments(b))
    drawn = [torch.randint(len(a), (len(a),), generator=generator) for _ in range(resamples)]
    apart = torch.tensor([frechet(real, moments(a[rows])) - frechet(real, moments(b[rows])) for rows in drawn])
    low, high = torch.quantile(apart, torch.tensor([0.025, 0.975])).tolist()
    return _rounded(value), _rounded(low), _rounded(high)


def _error(samples: Images, reference: Images) -> float:
    return _rounded(geometric_mean(relative_l2(samples, reference).tolist()))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def wanted(model: str, rows: Rows) -> Iterator[tuple[str, Cell | None]]:
    """The solution, the users' sampler, and at each number of evaluations plain steps, LogSNR, and its sampler in full."""
    yield CONVERGED, None
    cells = [found for n in BUDGETS if (found := contenders(model, rows, n)) is not None]
    yield from dict.fromkeys((ALL_STEPS, of[ALL_STEPS]) for of in cells)
    for of in cells:
        cached = of[LOG_SNR]
        yield PLAIN_STEPS, of[PLAIN_STEPS]
        yield LOG_SNR, cached
        yield IN_FULL, Cell(solver=cached.solver, spacing=cached.spacing, steps=cached.steps, n=cached.steps)


def main(
    model: Annotated[str, typer.Argument(help=f"one of {', '.join(DATA)}")],
    groups: Annotated[str, typer.Option(help="groups of seeds: 0, 1, ...; separated by spaces")] = "0 1 2",
    size: Annotated[int, typer.Option(help="samples of a group", min=2)] = 88,
    out: Annotated[Path, typer.Option(help="folder of the record")] = RESULTS / "truth",
) -> None:
    """Measure the distances that the record does not have."""
    if model not in DATA:
        raise typer.BadParameter(f"{model}: expected one of {', '.join(DATA)}")
    torch.set_num_threads(1)
    record, judge = Distances(out / RECORD), Judge(model, Lab(model, size), groups.split())
    with captured_once():
        if not record.has(model, REAL, None):
            record.add(judge.few_real())
        for contender, cell in wanted(model, Rows(RESULTS / "truth" / f"{model}.jsonl")):
            if not record.has(model, contender, cell):
                record.add(judge.row(contender, cell))
                typer.echo(str(record.rows[-1]))


if __name__ == "__main__":
    typer.run(main)
