"""What one call of nine minutes runs: the plan fits, and on a slower machine what matters most is there."""

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import invoke
from gpu_bench import bench

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bench as bench_module
from benchmarks.gpu import timing
from benchmarks.gpu.bench import Bench, OutOfTime
from benchmarks.gpu.entries import PendingVariant
from benchmarks.gpu.plan import FIRST, PLAN, lines
from benchmarks.gpu.sections import RUNS, run_section
from benchmarks.latency.timing import TimedVariant


def test_the_plan_of_one_call_fits_its_nine_minutes_and_runs_nothing() -> None:
    whole = list(lines(FIRST, 540))
    assert whole[-1].begins_s + whole[-1].expected_s < 540
    assert all(section.expected_s <= section.limit_s for section in PLAN.values())
    shown = invoke(gpu.main, "--plan").output
    assert all(row.name in shown for name in FIRST for row in PLAN[name].rows)


def test_the_rows_that_matter_are_there_after_nine_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a clock that goes as the plan expects, half as fast for what compiles: what is measured first is there, what is not says why."""
    now = [0.0]

    @contextmanager
    def within(seconds: float) -> Any:
        ends.append(min([now[0] + seconds, *ends[-1:]]))
        try:
            took(0)
            yield
        finally:
            ends.pop()

    def took(seconds: float) -> None:
        now[0] += seconds
        if ends and now[0] >= ends[-1]:
            now[0] = ends[-1]
            raise OutOfTime("out of time")

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench_module, "within", within)
    monkeypatch.setattr("benchmarks.gpu.sections.forget", lambda: None)
    monkeypatch.setattr(timing, "with_calls", lambda *_: (torch.nn.Linear(1, 1), []))
    slowness, ends = 1.0, list[float]()

    def prepared(where: Bench, entry: PendingVariant, calls: Any, leading: int) -> None:
        row = next(row for row in PLAN[name].rows if row.name == entry.name)
        took(slowness * row.expected_s)
        entry.row["frames"] = 1
        entry.variant = TimedVariant(entry.name, None)

    def counted(where: Bench, entry: PendingVariant, variant: TimedVariant, calls: Any) -> None:
        took(1.0)
        entry.row["generation"] = {"median_ms": 1.0}

    monkeypatch.setattr(timing, "prepare", prepared)
    monkeypatch.setattr(timing, "counted_run", counted)
    monkeypatch.setattr(timing, "details", lambda where, variants, calls, until: took(min(10.0, until - now[0])))
    for name in ("device", "checks"):
        monkeypatch.setitem(RUNS, name, lambda where, rows, until: took(0.8 * (until - now[0])))

    def run(slower: float) -> dict[str, list[str]]:
        nonlocal slowness, name
        slowness, now[0] = slower, 0.0
        there: dict[str, list[str]] = {}
        for name in FIRST:
            where = replace(bench(), steps=PLAN[name].steps, nfc=PLAN[name].nfc, rounds=PLAN[name].rounds)
            where.end = min(540.0, now[0] + PLAN[name].limit_s)
            rows = run_section(where, name, tmp_path / "part.json")["rows"]
            there[name] = [variant for variant, row in rows.get("variants", {}).items() if "generation" in row]
        assert now[0] <= 540
        return there

    expected = run(1.0)
    assert all(len(expected[name]) == len(PLAN[name].rows) for name in ("dit-xl-1", "flux", "wan"))
    slow = run(1.5)
    assert {"full, CUDA graphs", "RFE m=1, hoisted, CUDA graphs", "RFE m=1, stack, hoisted, CUDA graphs"} <= {*slow["dit-xl-1"]}
    assert {"full, blocks compiled", "RFE m=1, hoisted, CUDA graphs", "RFE m=1, stack, hoisted, CUDA graphs"} <= {*slow["flux"]}
