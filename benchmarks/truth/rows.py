"""Rows of the record: the errors of one group of seeds by one sampler and method, a line of JSON each, written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean

PLAIN = "plain"
"""The method of a sampler without a cache."""

CHOOSE = "choose"
"""The group of seeds on which choices are made."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured: n evaluations of the model by a sampler and a method."""

    solver: str
    spacing: str
    steps: int
    n: int
    method: str = PLAIN


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell on a group of seeds: relative L2 of each sample."""

    cell: Cell
    group: str
    truth: tuple[float, ...]
    """To the converged solution; empty where that was left out."""
    full: tuple[float, ...]
    """To full computation by the same sampler; empty for samplers without a cache."""


class Rows:
    """The rows of a file, by cell and group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[Cell, str], Row] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            values = json.loads(line)
            row = Row(cell=Cell(**values["cell"]), group=values["group"], truth=tuple(values["truth"]), full=tuple(values["full"]))
            self.rows[row.cell, row.group] = row

    def add(self, row: Row) -> None:
        """Keep a row, and append it to the file."""
        self.rows[row.cell, row.group] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def judged_groups(self, *cells: Cell) -> list[str]:
        """The groups of seeds, but for those on which choices are made, that have all of these cells."""
        groups = sorted({group for _, group in self.rows if group != CHOOSE})
        return [group for group in groups if all((cell, group) in self.rows for cell in cells)]

    def errors(self, cell: Cell, groups: Iterable[str], kind: str) -> list[float]:
        """Of all samples of some groups, one after the other; empty unless every group has the row."""
        rows = [self.rows.get((cell, group)) for group in groups]
        values = [() if row is None else getattr(row, kind) for row in rows]
        return [error for of in values for error in of] if all(values) else []

    def geometric_mean(self, cell: Cell, groups: Iterable[str], kind: str) -> float | None:
        """Of those errors; None where a row is missing."""
        errors = self.errors(cell, groups, kind)
        return geometric_mean(errors) if errors else None
