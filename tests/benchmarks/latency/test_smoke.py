"""The regression guard: counts must not move, ratios of times warn; on made-up records."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from command import invoke

from benchmarks.latency import smoke

RATIO = {"median": 0.20, "low": 0.18, "high": 0.22}
RECORD: dict[str, Any] = {
    "settings": {"model": "digits", "samples": 2, "steps": 14, "nfc": 5, "rounds": 5, "backend": "inductor"},
    "versions": {"torch": "2.13.0+cpu"},
    "counts": {"RFE m=1": {"state_bytes": 1000, "graphs": 3, "estimate_inductor_bytes": 1200}},
    "ratios": {"RFE m=1": {"estimate_share_of_full": RATIO}},
}


def changed(*path: str, to: Any) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    inner = record
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return record


def ratio(median: float) -> dict[str, Any]:
    spread = {"median": median, "low": median - 0.01, "high": median + 0.01}
    return changed("ratios", "RFE m=1", "estimate_share_of_full", to=spread)


def run(now: dict[str, Any], monkeypatch: pytest.MonkeyPatch, committed: Path, *options: str) -> Any:
    monkeypatch.setattr(smoke, "measured", lambda *_: now)
    return invoke(smoke.main, "--committed", committed, *options)


@pytest.mark.parametrize(
    ("now", "verdicts"),
    [
        (RECORD, ["within the spread"]),
        (ratio(0.21), ["within the spread"]),
        (ratio(0.235), ["beyond the spread, 1.17 of what it was"]),
        (ratio(0.30), ["warning: slower, beyond the spread, 1.50 of what it was"]),
        (ratio(0.10), ["warning: faster, beyond the spread, 0.50 of what it was"]),
        (changed("counts", "RFE m=1", "state_bytes", to=1100), ["moved by +100", "within the spread"]),
        (changed("counts", "RFE m=1", "graphs", to=4), ["moved by +1", "within the spread"]),
        (changed("counts", "RFE m=1", to={"state_bytes": 1000, "graphs": 3}), ["moved", "within the spread"]),
        (changed("settings", "samples", to=1), ["moved: nothing can be compared", "within the spread"]),
    ],
)
def test_the_comparison_says_what_moved(now: dict[str, Any], verdicts: list[str]) -> None:
    assert [verdict for *_, verdict in smoke.compared(now, RECORD, 1.25)] == verdicts


def test_inductors_counts_are_compared_under_the_same_torch_alone() -> None:
    now = changed("counts", "RFE m=1", to={"state_bytes": 1000, "graphs": 3, "estimate_inductor_bytes": 1300})
    now["versions"] = {"torch": "2.12.0"}
    assert ("RFE m=1: estimate_inductor_bytes", "1300", "1200", "another torch") in smoke.compared(now, RECORD, 1.25)
    now["counts"]["RFE m=1"]["state_bytes"] = 1
    assert ("RFE m=1: state_bytes", "1", "1000", "moved by -999") in smoke.compared(now, RECORD, 1.25)


def test_a_count_that_moved_is_exit_code_1_and_a_ratio_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = tmp_path / "smoke.json"
    missing = run(RECORD, monkeypatch, committed)
    assert missing.exit_code == 2
    assert "--update writes it" in missing.output
    assert run(RECORD, monkeypatch, committed, "--update").exit_code == 0
    assert json.loads(committed.read_text()) == RECORD
    slower = run(ratio(0.9), monkeypatch, committed)
    assert slower.exit_code == 0
    assert "warning: slower" in slower.output
    more = run(changed("counts", "RFE m=1", "state_bytes", to=1100), monkeypatch, committed)
    assert more.exit_code == 1
    assert ["RFE", "m=1:", "state_bytes", "1100", "1000", "moved", "by", "+100"] in [line.split() for line in more.output.splitlines()]
    assert json.loads(committed.read_text()) == RECORD


def test_ratios_are_taken_within_a_round() -> None:
    fast = {smoke.COMPILED: {"FULL": 10.0, "generation": 100.0}, smoke.TWIN: {"generation": 80.0}}
    fast |= {"RFE m=1": {"FULL": 11.0, "ESTIMATE": 1.0, "generation": 40.0}}
    slow = {name: {phase: 2 * ms for phase, ms in times.items()} for name, times in fast.items()}
    found = smoke.ratios([fast, slow], "RFE m=1")
    assert found["estimate_share_of_full"] == {"median": 0.1, "low": 0.1, "high": 0.1}
    assert found["generation_of_twin"]["median"] == 0.5
