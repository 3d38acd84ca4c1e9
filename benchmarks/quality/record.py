"""The record of the quality laboratory: MODEL.json with every figure, MODEL.csv with a line a cell, MODEL.npz with errors and tiles.

Figures are rounded to six digits. The errors of single samples, for paired comparisons, and the first samples of some cells, for pictures,
are in the .npz, which only a resumed run and the pictures need.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from jaxtyping import Float
from torch import Tensor

from benchmarks.files import Record
from benchmarks.quality.bootstrap import ratio_of_geometric_means
from benchmarks.quality.entry import FULL
from benchmarks.quality.methods import BASELINES, PUBLISHED_RFC
from rfc_fx.io.atomic import write_atomically

TILES = 10
"""Samples shown of a cell: one of each class."""


MUST_AGREE = ("model", "samples", "groups", "batch", "guidance", "dtype", "device", "compiled", "calibration_samples", "versions")
"""Settings that a resumed run may not change."""


def key(sampler: str, budget: int, method: str) -> str:
    """Name of a cell among the arrays; full computation has the number of steps as its budget."""
    return f"{sampler}/{budget}/{method}"


@dataclass
class Store:
    """A record on its way to a folder."""

    out: Path
    settings: Record
    full: dict[str, Record] = field(default_factory=dict)
    """Figures of full computation by sampler."""
    cells: dict[str, Record] = field(default_factory=dict)
    forced: Record | None = None
    refused: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.settings["model"])

    @classmethod
    def resumed(cls, out: Path, settings: Record) -> Store:
        """What the folder has of a run with the same settings; a new record where it has none. BadParameter where they differ."""
        store = cls(out, settings)
        where = out / f"{store.name}.json"
        if not where.exists():
            return store
        record = json.loads(where.read_text())
        before = record["settings"]
        other = [name for name in MUST_AGREE if _compared(name, before.get(name)) != _compared(name, rounded(settings[name]))]
        if other:
            raise typer.BadParameter(f"{where} was made with another {', '.join(other)}; run without --resume, or into another folder")
        own = sorted({*before["versions"]["rfc_fx"].split(", "), settings["versions"]["rfc_fx"]})
        store.settings = settings | {
            "samplers": merged(before["samplers"], settings["samplers"]),
            "versions": settings["versions"] | {"rfc_fx": ", ".join(own)},
        }
        store.full, store.forced = record["full"], record["teacher_forced"]
        store.cells = {key(cell["sampler"], cell["budget"], cell["method"]): cell for cell in record["cells"]}
        store.arrays = read_arrays(out / f"{store.name}.npz")
        return store

    def keep(self, sampler: str, budget: int, method: str, figures: Record, errors: Tensor | None, tiles: Tensor | None) -> None:
        """Take in a cell, or full computation, whose samples have no errors."""
        where = key(sampler, budget, method)
        if errors is None:
            self.full[sampler] = figures
        else:
            self.cells[where] = {"sampler": sampler, "budget": budget, "method": method, **figures}
            self.arrays[f"{where}/errors"] = errors.numpy().astype(np.float32)
        if tiles is not None:
            self.arrays[f"{where}/tiles"] = ((tiles[:TILES].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()

    def record(self, order: list[str]) -> Record:
        """All that is known, methods in the order of the table."""
        ranks = {name: rank for rank, name in enumerate(order)}
        cells = sorted(self.cells.values(), key=lambda c: (c["sampler"], -c["budget"], ranks.get(c["method"], len(ranks))))
        parts = {"settings": self.settings, "full": self.full, "cells": cells, "ratios": self.ratios(), "refused": self.refused}
        whole: Record = rounded(parts | {"teacher_forced": self.forced})
        return whole

    def ratios(self) -> dict[str, dict[str, Record]]:
        """Errors against TaylorSeer's best order and against RFC's, at the same sampler and budget: sampler -> budget -> figures."""
        ratios: dict[str, dict[str, Record]] = {}
        for sampler, budget in sorted({(cell["sampler"], cell["budget"]) for cell in self.cells.values()}, key=lambda at: (at[0], -at[1])):
            here = {cell["method"]: cell for cell in self.cells.values() if (cell["sampler"], cell["budget"]) == (sampler, budget)}
            row: Record = {"methods": {name: {} for name in here}}
            for what, among in (("taylorseer", BASELINES), ("rfc", PUBLISHED_RFC)):
                present = [name for name in among if name in here]
                if not present:
                    continue
                best = min(present, key=lambda name: here[name]["error"])
                row[what] = best
                for name in here:
                    own, other = (self._errors(sampler, budget, which) for which in (name, best))
                    row["methods"][name][what] = list(ratio_of_geometric_means(own, other))
            ratios.setdefault(sampler, {})[str(budget)] = row
        return ratios

    def _errors(self, sampler: str, budget: int, method: str) -> Float[Tensor, " N"]:
        return torch.from_numpy(self.arrays[f"{key(sampler, budget, method)}/errors"])

    def write(self, order: list[str]) -> Record:
        """Write .json, .csv and .npz, each whole or not at all."""
        self.out.mkdir(parents=True, exist_ok=True)
        record = self.record(order)
        arrays = io.BytesIO()
        np.savez_compressed(arrays, allow_pickle=False, **{name: self.arrays[name] for name in sorted(self.arrays)})
        for suffix, content in (
            ("json", (json.dumps(record, indent=1) + "\n").encode()),
            ("csv", as_csv(record).encode()),
            ("npz", arrays.getvalue()),
        ):
            write_atomically(self.out / f"{self.name}.{suffix}", partial(Path.write_bytes, data=content))
        return record


def _compared(setting: str, value: Any) -> Any:
    """What must agree of a setting: our own version may be another, for each run draws its own full computation to compare with."""
    return {name: version for name, version in value.items() if name != "rfc_fx"} if setting == "versions" else value


def merged(before: Record, now: Record) -> Record:
    """Samplers of two runs, with the budgets of both."""

    def both(a: Record, b: Record) -> Record:
        return b | {name: sorted({*a[name], *b[name]}, reverse=True) for name in ("budgets", "shown")}

    return {name: both(before.get(name) or now[name], now.get(name) or before[name]) for name in {**before, **now}}


def as_csv(record: Record) -> str:
    """A line for full computation with each sampler, and one for each cell."""
    steps = record["settings"]["samplers"]
    rows = [{"sampler": name, "budget": steps[name]["steps"], "method": FULL, **figures} for name, figures in record["full"].items()]
    rows += record["cells"]
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_arrays(where: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays beside a record; none where the file is missing."""
    if not where.exists():
        return {}
    with np.load(where) as arrays:
        return {name: arrays[name] for name in arrays.files}


def rounded(value: Any) -> Any:
    """Floats to six digits, tuples as lists."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
