"""Figures of a quality record that prose cites: ratios of errors by method, sampler and budget."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.files import Record
from benchmarks.quality.cells import cells_at, is_at_budget, kind
from benchmarks.quality.methods import BASELINES, PUBLISHED_RFC

SAMPLER = "ddim-50"
"""Of figures that name none."""


@dataclass(frozen=True)
class QualityFigures:
    """A record by what is asked of it."""

    record: Record

    @property
    def budgets(self) -> list[tuple[str, int]]:
        """Every sampler with every budget."""
        return [(sampler, int(budget)) for sampler, budgets in self.record["ratios"].items() for budget in budgets]

    def cell(self, name: str, budget: int, sampler: str = SAMPLER) -> Record:
        """A method's figures; KeyError where it was not run."""
        return cells_at(self.record, sampler, budget)[name]

    def interval(self, name: str, budget: int, sampler: str = SAMPLER, against: str = "taylorseer") -> list[float] | None:
        """[ratio, low, high] of the error to that of the better order of TaylorSeer, or of RFC; None where it was not run."""
        methods: Record = self.record["ratios"].get(sampler, {}).get(str(budget), {}).get("methods", {})
        ratio: list[float] | None = methods.get(name, {}).get(against)
        return ratio

    def ratio(self, name: str, budget: int, sampler: str = SAMPLER) -> float:
        """Error over that of TaylorSeer's better order; KeyError where it was not run."""
        if (ratio := self.interval(name, budget, sampler)) is None:
            raise KeyError(name, sampler, budget)
        return ratio[0]

    def intervals(self, name: str, against: str = "taylorseer") -> list[list[float]]:
        """The same with intervals, at every budget where it was run."""
        every = (self.interval(name, budget, sampler, against) for sampler, budget in self.budgets)
        return [interval for interval in every if interval is not None]

    def over(self, name: str, other: str, *budgets: int, figure: str = "error") -> list[float]:
        """A figure over that of another method: at these budgets with 50 steps of DDIM, or at all where both were run."""
        points = [(SAMPLER, budget) for budget in budgets] or self.budgets
        pairs = [(cells.get(name), cells.get(other)) for cells in (cells_at(self.record, *point) for point in points)]
        return [float(a[figure] / b[figure]) for a, b in pairs if a is not None and b is not None]

    def over_better_rfc(self, name: str, figure: str) -> list[float]:
        """A figure over that of the order of RFC with less error, at every budget."""
        return [
            float(cells[name][figure] / min((cells[rfc] for rfc in PUBLISHED_RFC), key=lambda cell: float(cell["error"]))[figure])
            for cells in (cells_at(self.record, *point) for point in self.budgets)
        ]

    def best_published(self, sampler: str, budget: int) -> tuple[float, str] | None:
        """(ratio, name) of the least error among the published methods, TaylorSeer and RFC aside, that kept the budget."""
        cells = cells_at(self.record, sampler, budget)
        names = [name for name, cell in cells.items() if kind(name) == "published" and name not in BASELINES and is_at_budget(cell)]
        ratios = ((self.interval(name, budget, sampler), name) for name in names)
        return min(((ratio[0], name) for ratio, name in ratios if ratio is not None), default=None)

    def best_published_over(self, name: str) -> list[float]:
        """Their least error over that of a method, at every budget."""
        best = ((self.best_published(*point), self.interval(name, point[1], point[0])) for point in self.budgets)
        return [published[0] / own[0] for published, own in best if published is not None and own is not None]

    def relation(self, figure: str) -> list[float]:
        """A figure of how outputs move with inputs: its mean over the sites, by interval."""
        return [float(figures[figure]["mean"]) for figures in self.record["teacher_forced"]["relation"].values()]
