"""Rows of the record are kept as they come, and what is judged was chosen on other seeds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.truth.fits import FITTED
from benchmarks.truth.lab import OWN
from benchmarks.truth.plans import CORRECTED, PARTS, USERS, judged, own_rule, tried_caches, tried_solvers
from benchmarks.truth.rows import CHOOSE, PLAIN, Cell, Row, Rows
from benchmarks.truth.tables import fitted_table, granularity_table, methods_table, truth_table

CELL = Cell(solver="UniPC", spacing="log-SNR", steps=8, n=8)


def test_a_row_is_read_again_and_a_missing_group_has_no_errors(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "digits.jsonl")
    rows.add(Row(cell=CELL, group="0", truth=(0.1, 0.4), full=()))
    again = Rows(tmp_path / "digits.jsonl")
    assert again.rows == rows.rows
    assert again.errors(CELL, ["0"], "truth") == [0.1, 0.4]
    assert again.geometric_mean(CELL, ["0"], "truth") == pytest.approx(0.2)
    assert again.errors(CELL, ["0", "1"], "truth") == []
    assert again.geometric_mean(CELL, ["0"], "full") is None


def known(tmp_path: Path) -> Rows:
    """Errors on the seeds for choosing: of UniPC in log-SNR the smallest, of LogSNR those of 100 steps in log-SNR."""
    rows = Rows(tmp_path / "digits.jsonl")
    for name, cells in tried_solvers("digits").items():
        for cell in cells:
            rows.add(Row(cell=cell, group=CHOOSE, truth=(0.1 if (name, cell.spacing) == ("UniPC", "log-SNR") else 0.2,), full=()))
    for cell in tried_caches("digits", [own_rule("digits"), *CORRECTED]):
        rows.add(Row(cell=cell, group=CHOOSE, truth=(0.01 if (cell.steps, cell.spacing) == (100, "log-SNR") else 0.02,), full=(0.1,)))
    return rows


def test_the_best_on_other_seeds_are_judged(tmp_path: Path) -> None:
    cells = judged("digits", known(tmp_path), 8)
    assert cells["UniPC"] == CELL
    assert cells["LogSNR"] == Cell(solver="DPM-Solver++ 2M", spacing="log-SNR", steps=100, n=8, method="LogSNR by angle, stack")
    assert cells["fitted"] == Cell(solver="DPM-Solver++ 2M", spacing="log-SNR", steps=100, n=8, method=CORRECTED[0])
    assert "DDIM (Euler)" in cells


def test_ratios_stand_in_the_tables(tmp_path: Path) -> None:
    rows = known(tmp_path)
    for cell in PARTS["judging"]("digits", rows):
        error = {PLAIN: 0.4 if cell.solver == OWN else 0.2}.get(cell.method, 0.1)
        rows.add(Row(cell=cell, group="0", truth=(error, error), full=()))
    for part in ("granularity", "methods", "lists", "fitted"):
        for cell in PARTS[part]("digits", rows):
            error = 0.05 if cell.method == "LogSNR by angle, stack" else 0.1
            rows.add(Row(cell=cell, group="0", truth=(), full=(error, error)))
    records = {"digits": rows}
    assert truth_table(records).count("| 0.50 (0.50-0.50) | 0.50 (0.50-0.50) |") == 4
    assert truth_table(records).count("| 0.25 (0.25-0.25) |") == 4
    for cell in PARTS["refining"]("digits", rows):
        nearer = 0.06 if cell.spacing == "Karras" else 0.07  # on the seeds for choosing; on the judged ones the other is nearer
        rows.add(Row(cell=cell, group=CHOOSE, truth=(nearer,), full=()))
        rows.add(Row(cell=cell, group="0", truth=(0.12 - nearer, 0.12 - nearer), full=()))
    assert truth_table(records).count("| 0.30 (0.30-0.30) |") == 4
    budgets = sum(map(len, USERS["digits"].values()))
    assert granularity_table(records).count("| 0.50 (0.50-0.50) | 1.00 (1.00-1.00) |") == budgets
    assert fitted_table(records).count(" 2.00 (2.00-2.00) ") == len(FITTED) * budgets
    assert methods_table(records).count("| 1.00 (1.00-1.00) | 0.50 (0.50-0.50) | - | - |") == budgets


@pytest.mark.parametrize("part", PARTS)
def test_no_cell_is_measured_twice(part: str, tmp_path: Path) -> None:
    cells = list(PARTS[part]("digits", known(tmp_path)))
    assert len(cells) == len({*cells}) > 0
    assert all(math.isfinite(cell.steps) and 0 < cell.n <= max(cell.steps * 2, 1) for cell in cells)
