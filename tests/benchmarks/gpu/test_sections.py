"""Every section is recorded as it comes, and what fails or does not fit is a row that says so."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_bench import ONE_BLOCK, bench, no_memory

import rfc
import rfc_fx
from benchmarks.gpu.bench import forget, tried
from benchmarks.gpu.plan import PLAN, Row
from benchmarks.gpu.sections import run_section
from benchmarks.gpu.workloads import LARGE
from benchmarks.latency.methods import equal_gaps, full_steps
from benchmarks.latency.rivals import table
from benchmarks.latency.rivals.rival import Attached, RivalError

pytestmark = pytest.mark.usefixtures("captured_once")


def test_a_tiny_section_writes_its_rows_as_they_come_and_what_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (Row(way="compiled", expected_s=1), Row(expected_s=1), Row(method="RFE m=1", way="compiled", expected_s=1))
    rows += (Row(method="Taylor m=1", way="compiled", expected_s=1), Row(method="RFE m=1", way="eager twin", expected_s=1))
    monkeypatch.setitem(PLAN, "wan", replace(PLAN["wan"], rows=rows))
    monkeypatch.setitem(LARGE, "wan", replace(LARGE["wan"], tiny=ONE_BLOCK))
    monkeypatch.setitem(LARGE, "flux", replace(LARGE["flux"], tiny=replace(ONE_BLOCK, model=no_memory)))
    transform, written = rfc_fx.transform, list[Any]()

    def refuse(model: Any, method: Any, **options: Any) -> Any:
        if isinstance(method.estimator, rfc.Taylor):
            raise rfc_fx.CaptureError("/somewhere/here/model.py:3: no way\nthrough it")
        return transform(model, method, **options)

    monkeypatch.setattr(rfc_fx, "transform", refuse)
    monkeypatch.setattr("benchmarks.gpu.sections.write_json", lambda path, section: written.append(json.dumps(section)))
    section = run_section(bench(), "wan", tmp_path / "wan.json")
    assert section["status"] == "done"
    variants = section["rows"]["variants"]
    assert variants["Taylor m=1, hoisted, compiled"]["error"] == "CaptureError: model.py:3: no way through it"
    assert variants["full, CUDA graphs"]["skipped"] == "needs CUDA"
    row = variants["RFE m=1, hoisted, compiled"]
    assert (row["nfc"], row["frames"], row["estimate_program"]["compiled_anew"]) == (4, 3, 0)
    assert row["ESTIMATE"]["median_ms"] > 0
    assert row["estimate_program"]["state_bytes_read"] <= row["state_bytes"]
    assert row["idle"]["idle_share"] == "needs CUDA"
    assert variants["RFE m=1, eager twin"]["nfc"] == 4
    counts = [sum("frames" in row for row in json.loads(text)["rows"]["variants"].values()) for text in written]
    assert counts == sorted(counts)
    assert counts[0] == 1  # written after the first variant
    assert run_section(bench(), "flux")["rows"] == {"error": "OutOfMemoryError: tried to allocate 24 GiB"}


def test_a_section_without_time_is_skipped_with_the_seconds_it_needs() -> None:
    assert run_section(bench(seconds=2.5), "flux") == {"status": "skipped", "reason": "2 s left, 5 s needed"}
    row: dict[str, Any] = {}
    assert tried(row, 0.05, lambda: time.sleep(60)) is None
    assert tried(row, 0, no_memory, key="idle") is None
    assert row == {"skipped": "out of time after 0 s", "idle": "no time left"}


def test_an_error_that_stays_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access every call of CUDA fails."""

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    row: dict[str, Any] = {}
    tried(row, 5, broken)
    forget()
    assert row == {"error": "RuntimeError: CUDA error: an illegal memory access was encountered"}


def test_a_nested_time_limit_keeps_the_outer_one() -> None:
    inner: dict[str, Any] = {}
    outer: dict[str, Any] = {}

    def part() -> None:
        tried(inner, 5, lambda: time.sleep(0.01))
        time.sleep(60)

    tried(outer, 0.1, part)
    assert (inner, outer) == ({}, {"skipped": "out of time after 0 s"})


def test_rivals_are_timed_against_full_computation_and_what_they_computed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One does as it is asked, one never skips, one fails and one is not installed."""

    def attached(full: set[int]) -> Any:
        def attach(model: Any, calls: Any, planned: list[int]) -> Attached:
            step, forward = [-1], model.forward

            def run(**arguments: Any) -> Any:
                step[0] += 1
                return forward(**arguments) if step[0] in full else (torch.zeros_like(arguments["hidden_states"]),)

            model.forward = run
            return Attached(begin=lambda: step.__setitem__(0, -1), was_full=lambda: step[0] in full, held=lambda: ())

        return attach

    def absent(model: Any, calls: Any, planned: list[int]) -> Attached:
        raise RivalError("not installed")

    def fails(model: Any, calls: Any, planned: list[int]) -> Attached:
        model.forward = lambda **_: 1 / 0
        return Attached(begin=lambda: None, was_full=lambda: True, held=lambda: ())

    planned = full_steps(equal_gaps(10, 4), 10)
    ways = {"obeys": attached({*planned}), "never skips": attached({*range(10)}), "fails": fails, "absent": absent}
    monkeypatch.setattr(table, "RIVALS", ways)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setitem(LARGE, "rivals", replace(LARGE["rivals"], tiny=ONE_BLOCK))
    section = run_section(bench(), "rivals")
    assert section["status"] == "done"
    assert section["rows"]["refused"] == {"absent, compiled": "not installed"}
    rows = section["rows"]["variants"]
    assert (rows["obeys, compiled"]["nfc"], rows["obeys, compiled"]["full_steps"], rows["obeys, compiled"]["notes"]) == (4, planned, [])
    assert rows["never skips, compiled"]["notes"] == ["never skips: a middle block ran in all 10 steps"]
    assert rows["fails, compiled"]["error"].startswith("ZeroDivisionError")
    assert rows["full, compiled"]["speedup_vs_compiled_full"] == 1
    assert rows["obeys, compiled"]["ESTIMATE"]["median_ms"] < rows["obeys, compiled"]["FULL"]["median_ms"]
