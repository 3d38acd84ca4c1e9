"""The GPU benchmark on the CPU: every section is recorded, and what fails or does not fit is a row that says so."""

import json
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import invoke

import rfc
import rfc_fx
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bench as bench_module
from benchmarks.gpu import checks, timing
from benchmarks.gpu.bench import Bench, OutOfTime, forget, tried
from benchmarks.gpu.entries import PendingVariant, entries, prepare
from benchmarks.gpu.graphs import recordings
from benchmarks.gpu.idle import covered, estimate_alone, longest_gap
from benchmarks.gpu.plan import FIRST, PLAN, Row, lines
from benchmarks.gpu.processes import Process
from benchmarks.gpu.sections import RUNS, run_section
from benchmarks.gpu.workloads import LARGE, TINY_DIT, built
from benchmarks.latency.compiling import first_runs
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import calls_of, dit

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def bench(backend: str = "eager", seconds: float = 600) -> Bench:
    return Bench(
        device=CPU, tiny=True, backend=backend, regional=False, steps=10, nfc=4, rounds=1, end=time.perf_counter() + seconds, full_steps=2
    )


ONE_BLOCK = replace(TINY_DIT, model=dit(1, 2, 32, side=8))


def no_memory() -> Any:
    raise torch.OutOfMemoryError("tried to allocate 24 GiB")


# ---- processes -------------------------------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; seconds = float(sys.stdin.readline())\n{code}"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os._exit(1)", r"its process ended with code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"its process ended with code -11"),
        (
            "import signal, time; signal.signal(signal.SIGALRM, lambda *_: None); time.sleep(60)",
            r"ended after \d s: it did not end in its 0 s",
        ),
        ("", None),
    ],
    ids=["exit", "crash", "hang", "well"],
)
def test_a_section_is_ended_and_says_why(code: str, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.processes.GRACE_S", 0.5 if "sleep" in code else 20)
    why = Process(python(code)).run(0.1)
    assert why == said if said is None else re.fullmatch(said, why or "")


def test_what_a_lost_section_has_written_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "flux.json"
    path.write_text(json.dumps({"status": "begun", "rows": {"variants": {"full": {"FULL": 1}}}}))
    assert gpu.recorded(path, "its process ended with code -9") == {
        "status": "failed",
        "reason": "its process ended with code -9",
        "rows": {"variants": {"full": {"FULL": 1}}},
    }
    assert gpu.recorded(tmp_path / "wan.json", "2 s left, 5 s needed") == {"status": "skipped", "reason": "2 s left, 5 s needed"}


def test_sections_that_are_not_run_again_are_kept_and_the_device_is_always_measured(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"sections": {"flux": {"status": "done"}, "device": {"status": "old"}}}))
    assert invoke(gpu.main, "--tiny", "--sections", "device", "--out", str(tmp_path)).exit_code == 0
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert sections["flux"] == {"status": "done"}
    assert sections["device"]["status"] == "done"
    assert sections["device"]["rows"]["copy"]["gb_per_s"] > 0


# ---- the plan --------------------------------------------------------------------------------------------------------


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


# ---- sections --------------------------------------------------------------------------------------------------------


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


def test_checks_compare_every_way_and_a_wrong_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace_case(checks.CASES[1])
    monkeypatch.setattr(checks, "CASES", [case, case._replace(hoists=True)])
    rows: dict[str, Any] = {}
    checks.checks(bench(), rows, time.perf_counter() + 600)
    row = rows["dit, float32, RFE m=1"]
    assert row["passed"]
    assert row["relative_difference"] == {"eager twin": 0, "compiled": 0}
    assert row["kept_outputs"] == {"programs": "valid", "eager twin": "valid", "compiled": "valid"}
    assert row["CUDA graphs"] == {"skipped": "needs CUDA"}
    assert rows[checks.TURNS] == {"relative_difference": {"CUDA graphs": 0}, "passed": True}
    monkeypatch.setattr(checks, "distance", lambda a, b: 0.5)
    monkeypatch.setattr(checks, "CASES", [case])
    checks.checks(bench(), rows, time.perf_counter() + 600)
    assert not rows["dit, float32, RFE m=1"]["passed"]
    assert not rows[checks.TURNS]["passed"]
    assert gpu.failed({"rows": rows}) == ["dit, float32, RFE m=1", checks.TURNS]


def replace_case(case: checks.Case) -> checks.Case:
    return case._replace(workload=ONE_BLOCK)


def test_the_warm_up_runs_every_sequence_of_programs_that_is_counted() -> None:
    """CUDA graphs are recorded for each sequence within a step; a discarded estimate before FULL is one."""
    model = built(ONE_BLOCK, CPU, torch.float32)
    calls = calls_of(ONE_BLOCK, model, 1, 10, CPU, torch.float32)
    plan = equal_gaps(10, 4)
    method = rfc.Method(estimator=rfc.RFE(order=1), schedule=plan)
    cached = rfc_fx.transform(model, method, example_inputs=calls[0], config=rfc_fx.Config(speculate=True))
    steps: list[list[str]] = []
    for phase, program in cached.programs.items():
        program.run.register_forward_pre_hook(lambda *_, phase=phase: steps[-1].append(phase))

    def step(**arguments: Any) -> Any:
        steps.append([])
        return cached(**arguments)

    variant = TimedVariant("", step, cached)
    first_runs(variant, calls, plan.warmup, CPU)
    warmed = [tuple(programs) for programs in steps]
    steps.clear()
    variant.run(calls, CPU, count=True)
    counted = {tuple(programs) for programs in steps}
    assert ("PREFIX", "ESTIMATE", "FULL") in counted
    assert {programs: warmed.count(programs) >= 2 for programs in counted} == dict.fromkeys(counted, True)


def test_what_libraries_make_when_they_are_imported_is_not_made_on_the_device() -> None:
    seen: list[bool] = []

    def model() -> Any:
        seen.append("diffusers.models.transformers.transformer_wan" in sys.modules)
        return torch.nn.Linear(1, 1)

    assert built(replace(TINY_DIT, model=model), torch.device("meta"), torch.bfloat16).weight.is_meta
    assert seen == [True]


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_later_step_that_writes_over_an_output_is_found() -> None:
    model = built(TINY_DIT, CPU, torch.float32)
    calls = calls_of(TINY_DIT, model, 1, 6, CPU, torch.float32)
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


def test_kernels_that_overlap_count_once_and_gaps_are_between_them() -> None:
    spans = [(0, 10), (2, 5), (8, 12), (20, 21)]
    assert (covered(spans), longest_gap(spans), longest_gap([])) == (13, 8, 0)


def test_recordings_are_the_nodes_of_all_trees() -> None:
    leaf = SimpleNamespace(children={})
    assert recordings([SimpleNamespace(children={1: [leaf, leaf], 2: [SimpleNamespace(children={3: [leaf]})]}), leaf]) == 6


def test_distance_is_infinite_where_an_output_is_nan() -> None:
    assert checks.distance([torch.tensor([1.0, float("nan")]), torch.ones(2)], [torch.ones(2)] * 2) == float("inf")
    assert checks.distance([torch.ones(2)], [torch.ones(2)]) == 0


@pytest.mark.compile
@pytest.mark.slow
def test_inductor_counts_the_bytes_of_an_estimated_step() -> None:
    where = bench("inductor")
    model = built(ONE_BLOCK, CPU, torch.float32)
    calls = calls_of(ONE_BLOCK, model, 1, 10, CPU, torch.float32)
    plan = equal_gaps(10, 4)
    (entry,) = entries(where, [Row(method="RFE m=1", way="compiled", expected_s=1)], model, calls, plan)
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
