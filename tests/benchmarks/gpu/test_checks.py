"""The checks compare every way to run, and a wrong one fails."""

import time
from typing import Any

import pytest
import torch
from gpu_bench import CPU, ONE_BLOCK, bench

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.workloads import TINY_DIT, built
from benchmarks.latency.workloads import calls_of

pytestmark = pytest.mark.usefixtures("captured_once")


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
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    monkeypatch.setattr(checks, "CASES", [case])
    checks.checks(bench(), rows, time.perf_counter() + 600)
    assert not rows["dit, float32, RFE m=1"]["passed"]
    assert not rows[checks.TURNS]["passed"]
    assert gpu.failed({"rows": rows}) == ["dit, float32, RFE m=1", checks.TURNS]


def replace_case(case: checks.Case) -> checks.Case:
    return case._replace(workload=ONE_BLOCK)


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


def test_distance_is_infinite_where_an_output_is_nan() -> None:
    assert checks.distance([torch.tensor([1.0, float("nan")]), torch.ones(2)], [torch.ones(2)] * 2) == float("inf")
    assert checks.distance([torch.ones(2)], [torch.ones(2)]) == 0


@pytest.mark.gpu
@pytest.mark.compile
@pytest.mark.filterwarnings("default")
def test_cuda_graphs_agree_with_the_uncompiled_programs() -> None:
    rows: dict[str, Any] = {}
    where = Bench(torch.device("cuda"), True, "inductor", False, 10, 4, 1, time.perf_counter() + 300)
    with torch._inductor.config.patch({"triton.cudagraph_or_error": True}):
        checks.checks(where, rows, where.end)
    assert all(row["passed"] for row in rows.values()), rows
