"""The GPU benchmark on the CPU: every section is recorded, and what fails or does not fit is a row that says so."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import invoke

import rfc_fx
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks
from benchmarks.gpu.bench import Bench, tried
from benchmarks.gpu.entries import entries, prepare
from benchmarks.gpu.estimators import GRAPHS, SKETCHED
from benchmarks.gpu.idle import covered, estimate_alone
from benchmarks.gpu.sections import SECTIONS, run_section
from benchmarks.gpu.workloads import LARGE, TINY_DIT, built
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.workloads import calls_of, dit


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def bench(backend: str = "eager", seconds: float = 60) -> Bench:
    return Bench(
        device=torch.device("cpu"),
        tiny=True,
        backend=backend,
        regional=False,
        steps=10,
        nfc=4,
        rounds=1,
        end=time.perf_counter() + seconds,
    )


ONE_BLOCK = replace(TINY_DIT, model=dit(1, 2, 32, side=8))


@pytest.fixture
def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """One check of the smallest workload."""
    monkeypatch.setattr(checks, "CASES", [(ONE_BLOCK, torch.float32, "RFE m=1")])


def no_memory() -> Any:
    raise torch.OutOfMemoryError("tried to allocate 24 GiB")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """DiT with one block for the last workload, which is not captured with a sketch; none of the others can be made."""
    for name in LARGE:
        tiny = ONE_BLOCK if name == "wan" else replace(ONE_BLOCK, model=no_memory)
        monkeypatch.setitem(LARGE, name, replace(LARGE[name], tiny=tiny, beside=name == "wan"))
    transform = rfc_fx.transform

    def refuse(model: Any, method: Any, **options: Any) -> Any:
        if method.estimator is SKETCHED:
            raise rfc_fx.CaptureError("/somewhere/here/model.py:3: no way\nthrough it")
        return transform(model, method, **options)

    monkeypatch.setattr(rfc_fx, "transform", refuse)


def test_a_tiny_run_records_every_section_and_what_fails_is_a_row_with_its_error(tmp_path: Path, one_case: None, short: None) -> None:
    result = invoke(gpu.main, "--tiny", "--rounds", "1", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(sections) == list(SECTIONS)
    assert {section["status"] for section in sections.values()} == {"done"}
    assert sections["device"]["rows"]["copy"]["gb_per_s"] > 0
    (row,) = sections["checks"]["rows"].values()
    assert row["passed"]
    assert row["relative_difference"] == {"eager twin": 0, "compiled": 0}
    assert row["kept_outputs"] == {"programs": "valid", "eager twin": "valid", "compiled": "valid"}
    assert row[GRAPHS] == {"skipped": "needs CUDA"}
    assert sections["flux"]["rows"] == {"error": "OutOfMemoryError: tried to allocate 24 GiB"}
    variants = sections["wan"]["rows"]["variants"]
    assert variants["RFE m=1, sketch 16, int8, hoisted, compiled"] == {"error": "CaptureError: model.py:3: no way through it"}
    for estimator in ("Taylor m=1", "RFE m=1"):
        assert_complete(variants[f"{estimator}, hoisted, compiled"])
    assert variants["full, CUDA graphs"] == {"skipped": "needs CUDA"}
    assert variants["RFE m=1, eager twin"]["nfc"] == 4


def assert_complete(row: dict[str, Any]) -> None:
    assert row["nfc"] == 4
    assert row["frames"] == 3
    assert row["ESTIMATE"]["median_ms"] > 0
    assert row["state_bytes"] > 0
    assert row["estimate_program"]["compiled_anew"] == 0
    assert row["idle"]["idle_share"] == "needs CUDA"


def test_a_section_without_time_is_skipped_with_the_seconds_it_needs() -> None:
    assert run_section(bench(seconds=5.5), "flux") == {"status": "skipped", "reason": "5 s left, 45 s needed"}
    row: dict[str, Any] = {}
    assert tried(row, 0.05, lambda: time.sleep(60)) is None
    assert tried(row, 0, no_memory, key="idle") is None
    assert row == {"skipped": "out of time after 0 s", "idle": "no time left"}


def test_sections_that_are_not_run_again_are_kept(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"sections": {"flux": {"status": "done"}, "device": {"status": "old"}}}))
    assert invoke(gpu.main, "--tiny", "--sections", "device", "--out", str(tmp_path)).exit_code == 0
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert sections["flux"] == {"status": "done"}
    assert sections["device"]["status"] == "done"


def test_a_wrong_compilation_fails_the_checks_and_the_command(tmp_path: Path, one_case: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "distance", lambda a, b: 0.5)
    result = invoke(gpu.main, "--tiny", "--sections", "checks", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "checks failed: ['dit, float32, RFE m=1']" in result.output


def test_a_later_step_that_writes_over_an_output_is_found() -> None:
    model = built(TINY_DIT, torch.device("cpu"), torch.float32)
    calls = calls_of(TINY_DIT, model, 1, 6, torch.device("cpu"), torch.float32)
    place = torch.zeros(2)

    class Caching:
        stats = type("Stats", (), {"phases": ["FULL"] * 6})

        def reset(self) -> None:
            place.zero_()

    outputs = checks.generation(lambda **_: (place.add_(1),), Caching(), calls)
    assert outputs.validity == "step 1 overwrote the output of step 0"
    assert [float(clone[0]) for clone in outputs.clones] == [1, 2, 3, 4, 5, 6]


def test_a_nested_time_limit_keeps_the_outer_one() -> None:
    inner: dict[str, Any] = {}
    outer: dict[str, Any] = {}

    def part() -> None:
        tried(inner, 5, lambda: time.sleep(0.01))
        time.sleep(60)

    tried(outer, 0.1, part)
    assert (inner, outer) == ({}, {"skipped": "out of time after 0 s"})


def test_kernels_that_overlap_count_once() -> None:
    assert covered([(0, 10), (2, 5), (8, 12), (20, 21)]) == 13


def test_distance_is_infinite_where_an_output_is_nan() -> None:
    assert checks.distance([torch.tensor([1.0, float("nan")]), torch.ones(2)], [torch.ones(2)] * 2) == float("inf")
    assert checks.distance([torch.ones(2)], [torch.ones(2)]) == 0


@pytest.mark.compile
def test_inductor_counts_the_bytes_of_an_estimated_step() -> None:
    where = bench("inductor")
    model = built(ONE_BLOCK, where.device, torch.float32)
    calls = calls_of(ONE_BLOCK, model, 1, 10, where.device, torch.float32)
    plan = equal_gaps(10, 4)
    entry = entries(where, model, calls, plan, beside=False)[1]
    prepare(where, entry, calls, plan.warmup)
    taken = estimate_alone(where, entry)
    assert entry.variant is not None
    state = entry.variant.cache.plan().state_bytes
    assert state / 2 <= taken["inductor_bytes"] <= 4 * state  # part of the state is PREFIX's; so small a model reads as much beside it
    assert taken["compiled_anew"] == 0


@pytest.mark.gpu
@pytest.mark.compile
@pytest.mark.filterwarnings("default")
def test_cuda_graphs_agree_with_the_uncompiled_programs() -> None:
    rows: dict[str, Any] = {}
    where = Bench(torch.device("cuda"), True, "inductor", False, 10, 4, 1, time.perf_counter() + 300)
    with torch._inductor.config.patch({"triton.cudagraph_or_error": True}):
        checks.checks(where, rows, where.end)
    assert all(row["passed"] for row in rows.values()), rows
