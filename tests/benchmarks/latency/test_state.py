"""The table of what smaller state costs, on one estimator and two types."""

import json
from pathlib import Path

import pytest
import torch
from command import invoke

import rfc
from benchmarks.latency import state


@pytest.mark.slow
def test_smaller_state_changes_the_samples_a_little_and_is_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FAMILIES", {"Taylor m=1": [rfc.Taylor(order=1)]})
    monkeypatch.setattr(state, "TYPES", [(None, None), (torch.int8, None)])
    result = invoke(state.main, "--seeds", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    whole, small = json.loads((tmp_path / "digits.json").read_text())["rows"]
    assert whole["error"] == 0
    assert 1e-6 < small["error"] < 0.05
    assert small["state_bytes"] < 0.7 * whole["state_bytes"]
    assert whole["psnr_db"] > 20
    assert "| Taylor m=1 | 0.0e+00" in (tmp_path / "digits.md").read_text()
