"""The profile of an estimated step: kernels by name, the innermost once, and what is left is the host's."""

import json
from pathlib import Path

import pytest
import torch
from command import invoke
from families import FAMILIES, moved

import rfc
from benchmarks.latency import profile, workloads


def tiny() -> workloads.Workload:
    model, kwargs = FAMILIES["dit"]()
    return workloads.Workload(
        name="tiny", what="a tiny DiT", model=lambda: model, calls=lambda _, samples, steps: [moved(kwargs, i, steps) for i in range(steps)]
    )


def test_kernels_count_once() -> None:
    x, w = torch.randn(64, 64), torch.randn(64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        torch.nn.functional.linear(x, w)
    times = profile._kernels(found, torch.device("cpu"))
    assert times["aten::addmm"] > 0 or times["aten::mm"] > 0
    whole = sum(event.cpu_time_total for event in found.events() if event.cpu_parent is None and event.name.startswith("aten::"))
    assert sum(times.values()) <= 1.01 * whole / 1e3


@pytest.mark.compile
@pytest.mark.slow
def test_parts_of_a_step_add_up_and_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(profile.WORKLOADS, "tiny", tiny())
    options = ["--model", "tiny", "--methods", "Taylor m=1", "--steps", "8", "--nfc", "4", "--rounds", "1", "--out", str(tmp_path)]
    result = invoke(profile.main, *options)
    torch._dynamo.reset()
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "tiny-1.json").read_text())["methods"].values()
    assert any("cpp_fused" in name for name in row["kernels_ms"])
    assert row["bytes"] > 0
    assert sum(row["kernels_ms"].values()) + row["host_ms"] == pytest.approx(row["estimate_ms"])
    assert "| Taylor m=1 |" in (tmp_path / "tiny-1.md").read_text()


def test_listed_steps_are_those_of_the_latency_benchmark() -> None:
    model, kwargs = FAMILIES["dit"]()
    calls = [moved(kwargs, i, 12) for i in range(12)]
    cached = profile.prepared(model, rfc.Taylor(order=1), calls, nfc=5)
    assert len(cached.method.schedule.full_steps) == 5
