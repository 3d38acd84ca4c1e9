"""The scaling benchmark, quick: the axes are measured, and the point that they share once."""

import json
from pathlib import Path

import pytest
import torch
from command import invoke

from benchmarks.latency import scaling


@pytest.mark.slow
def test_quick_measures_the_axes_and_writes_all_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[scaling.Point] = []
    original = scaling.measured

    def noted(point: scaling.Point, settings: scaling.Settings) -> object:
        measured.append(point)
        return original(point, settings)

    monkeypatch.setattr(scaling, "measured", noted)
    options = "--quick --rounds 1 --steps 8 --nfc 4 --backend eager"
    result = invoke(scaling.main, *options.split(), "--axes", "depth, batch", "--out", tmp_path)
    torch._dynamo.reset()
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert {name: [row[name] for row in rows] for name, rows in found["axes"].items()} == {
        name: list(scaling.QUICK[name]) for name in ("depth", "batch")
    }
    assert len(measured) == len(set(measured)) == 3
    for rows in found["axes"].values():
        for row in rows:
            assert all(row["variants"][name]["estimate_share_of_compiled_full"] > 0 for name in scaling.ESTIMATORS)
            assert row["variants"]["RFE m=1"]["nfc"] == 4
    assert "| depth | full ms | Taylor m=1 ESTIMATE ms | of full |" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_compile_time_is_of_three_ways_and_regional_compiles_no_more_graphs() -> None:
    (row,) = scaling.compile_times([1], 32, "eager")
    assert row["depth"] == 1
    assert {way: found["frames"] for way, found in row["ways"].items()} == {
        "plain model": 1,
        "transformed": 3,
        "transformed, regional": 3,
    }
    assert "| blocks | plain model s | transformed s | transformed, regional s |" in scaling.markdown({"axes": {}, "compile_time": [row]})


def test_an_unknown_axis_is_refused_by_name() -> None:
    result = invoke(scaling.main, "--axes", "heads")
    assert result.exit_code == 2
    assert "unknown axes heads" in result.output
