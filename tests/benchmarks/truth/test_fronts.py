"""Who is on the Pareto fronts, and what the tables of costs and distances tell."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.files import write_json
from benchmarks.quality.frechet import moments
from benchmarks.truth import fronts
from benchmarks.truth.contenders import ALL_STEPS, CONTENDERS, LOG_SNR, PLAIN_STEPS, all_contenders, contenders
from benchmarks.truth.distance_tables import budget_table, distance_table
from benchmarks.truth.distances import CONVERGED, IN_FULL, REAL, Distance, Distances, above, wanted
from benchmarks.truth.fronts import AXES, Point, front
from benchmarks.truth.lab import Lab
from benchmarks.truth.plans import CORRECTED, PARTS, REFINED, own_rule, tried_caches, tried_solvers
from benchmarks.truth.rows import CHOOSE, Cell, Row, Rows
from benchmarks.truth.timing import FITTED_ORDER, RECORD, Ways
from rfc.estimators.linear_prediction import LinearPrediction


def point(cost: float, error: float) -> Point:
    return Point(contender=LOG_SNR, n=8, error=error, flops=0.0, ms=cost, p10_ms=cost, p90_ms=cost)


positive = st.floats(0.1, 9, allow_nan=False)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=12))
def test_a_point_is_on_the_front_or_another_beats_it(values: list[tuple[float, float]]) -> None:
    points = [point(*value) for value in values]
    kept = front(points, AXES["time"])
    costs, errors = [p.ms for p in kept], [p.error for p in kept]
    assert costs == sorted({*costs})
    assert errors == sorted({*errors}, reverse=True)
    assert all(any(p.ms <= q.ms and p.error <= q.error for p in kept) for q in points)


def test_at_equal_cost_the_smaller_error_is_on_the_front() -> None:
    a, b, c = point(2, 0.1), point(2, 0.2), point(3, 0.1)
    assert front([b, c, a], AXES["time"]) == [a]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Everything that is judged on the flow: plain steps have an error of 0.2, LogSNR of 0.1, refined lists of 0.05, all steps of 0.4."""
    rows = Rows(tmp_path_factory.mktemp("truth") / "flow.jsonl")
    for cell in [*(c for cells in tried_solvers("flow").values() for c in cells), *tried_caches("flow", [own_rule("flow"), *CORRECTED])]:
        rows.add(Row(cell=cell, group=CHOOSE, truth=(0.1,), full=()))
    for cell in PARTS["refining"]("flow", rows):
        rows.add(Row(cell=cell, group=CHOOSE, truth=(0.1,), full=()))
    for cell in [*PARTS["judging"]("flow", rows), *PARTS["refining"]("flow", rows)]:
        error = 0.4 if cell.n > 14 else {"plain": 0.2, "refined to the truth": 0.05}.get(cell.method, 0.1)
        rows.add(Row(cell=cell, group="0", truth=(error, error), full=(error, error)))
    return rows


def test_contenders_are_told_by_name(rows: Rows) -> None:
    at_8 = contenders("flow", rows, 8)
    assert at_8 is not None
    assert list(at_8) == list(CONTENDERS)
    assert {at_8[name].n for name in CONTENDERS[:4]} == {8}
    assert len(all_contenders("flow", rows)) == 4 * 4 + 1
    assert contenders("flow", Rows(rows.path.parent / "none.jsonl"), 8) is None


def test_fronts_and_costs_stand_in_the_tables_and_the_picture(rows: Rows) -> None:
    timed = [
        {"contender": name, "cell": vars(cell), "flops_full_steps": cell.n, "median_ms": 10.0 * cell.n, "p10_ms": 9.0, "p90_ms": 11.0}
        for cell, name in all_contenders("flow", rows).items()
    ]
    write_json(rows.path.parent / RECORD, {"flow": {"step": {"median_ms": 9.5, "samples": 3}, "rows": timed}})
    told = fronts.figures(rows.path.parent)
    assert told["fronts_table"].count("| 6 refined (0.0500) |") == len(AXES)
    assert told["costs_table"].count("| **0.0500; 6.00; 60 (9-11)** |") == 1
    assert told["costs_table"].count("0.4000; 50.00; 500 (9-11)") == 1
    assert told["costs_table"].count("| 0.2000; ") == 4
    picture = fronts.drawn(rows.path.parent, rows.path.parent / "fronts.svg")
    assert picture is not None
    assert picture.stat().st_size < 100_000
    assert all(f">{text}<" in picture.read_text() for text in (ALL_STEPS, "full computations", "ms of a batch"))
    assert fronts.drawn(rows.path.parent / "none") is None


def test_every_contender_is_timed_with_its_own_number_of_full_steps() -> None:
    ways = Ways(Lab("flow", 1), lambda model: model)
    few = {
        PLAIN_STEPS: Cell(solver="UniPC", spacing="log-SNR", steps=3, n=3),
        LOG_SNR: Cell(solver="DPM-Solver++ 2M", spacing="Karras", steps=5, n=3, method=own_rule("flow")),
    }
    for name, cell in few.items():
        way = ways.way(name, cell)
        way.timed(count=True)
        assert len(way.times_ms) == 1
        assert 3 <= way.flops < 3.1
        assert way.row()["samples"] == 1
    for method, order in ((CORRECTED[0], FITTED_ORDER), (REFINED, 4)):
        listed = ways.method("tuned", replace(few[LOG_SNR], n=4, method=method))
        assert listed.estimator == LinearPrediction(order=order)
        assert len(listed.schedule.full_steps) == 4  # type: ignore[attr-defined]
    step = ways.step(few[PLAIN_STEPS])
    step.timed(count=False)
    assert step.times_ms == []


def test_a_set_that_is_nearer_lies_below_and_one_like_the_other_at_nought() -> None:
    generator = torch.Generator().manual_seed(0)
    real, a, b = (torch.randn(200, 3, generator=generator) + shift for shift in (0.0, 0.1, 1.0))
    value, low, high = above(a, b, moments(real))
    assert low < value < high < 0
    assert above(a, a, moments(real)) == (0, 0, 0)


def test_distances_are_read_again_and_stand_in_the_tables(rows: Rows, tmp_path: Path) -> None:
    record = Distances(tmp_path / "distances.jsonl")
    for contender, cell in [(REAL, None), *dict.fromkeys(wanted("flow", rows))]:
        own = {"truth": None, "above": None} if cell is None else {"truth": 0.2, "above": (0.1, -0.1, 0.3)}
        full = 0.15 if contender == LOG_SNR else None
        record.add(Distance(model="flow", contender=contender, cell=cell, samples=9, full=full, frechet=2.0, **own))  # type: ignore[arg-type]
    again = Distances(record.path)
    assert again.rows == record.rows
    assert again.has("flow", CONVERGED, None)
    assert not again.has("digits", CONVERGED, None)
    assert any(row.contender == IN_FULL for row in again.rows)
    assert distance_table(again.rows).splitlines()[2:] == ["| flow | 9 | 2 | 2 | 2 | +0.100 (-0.100 to +0.300) | 0.2000 |"]
    lines = budget_table(again.rows).splitlines()[2:]
    assert len(lines) == 4
    assert all(line.count("+0.100 (-0.100 to +0.300)") == 3 and "| 0.2000 | 0.1500 |" in line for line in lines)
    assert math.isfinite(again.rows[0].frechet)
