"""Options: whatever cannot be is one line on standard error and exit code 2, before anything is loaded."""

import os
from collections import Counter
from pathlib import Path

import option_values
import pytest
from option_values import cases, commands, nothing_loads, outcome

pytestmark = pytest.mark.onnx

EACH = int(os.environ.get("RFC_FX_FUZZ_OPTIONS", "1"))
"""Odd values for each option."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some values are names of folders that commands make


def test_the_calls_to_which_options_are_added_are_accepted(onnx_small: Path, tmp_path: Path) -> None:
    with nothing_loads():
        for name, own in option_values.calls(onnx_small, tmp_path).items():
            for call in own:
                assert outcome([name, *call]) == "loaded", (name, call)
    assert set(option_values.calls(onnx_small, tmp_path)) == set(commands())


def test_every_option_with_odd_values_is_accepted_or_refused_in_one_line_before_anything_loads(onnx_small: Path, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    with nothing_loads():
        for arguments in cases(onnx_small, tmp_path / "out", EACH):
            found = outcome(arguments)
            seen[found] += 1
            assert found in ("loaded", "refused"), (ascii(arguments)[:300], found)
    assert seen["refused"] > 2 * seen["loaded"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "ENGINE", "--cfg", "nan"],
        ["run", "ENGINE", "--tau", "-1"],
        ["run", "ENGINE", "--seeds", "99999999999999"],
        ["run", "ENGINE", "--model", "nowhere"],
        ["run", "ENGINE", "--prompt", "x"],
        ["run", "ENGINE", "--out", "/dev/null"],
        ["run", "ENGINE", "--class", "../x"],
        ["run", "ENGINE", "--trusted", "nowhere"],
        ["verify", "ENGINE", "--model", ""],
        ["bench", "ENGINE", "--model", "nowhere"],
        ["bench", "ENGINE", "--prompt", "x"],
        ["bench", "digits", "--trust"],
        ["bench", "x" * 5000],
        ["bench", "digits", "--method", ""],
        ["export", "digits", "--backend", "onnx", "--out", "x" * 5000],
        ["export", "digits", "--backend", "onnx", "--out", "e", "--batch", "99999999999"],
        ["export", "digits", "--backend", "onnx", "--out", "e", "--batch", "1,0"],
        ["export", "digits", "--backend", "onnx", "--out", "e", "--shapes", "8x8"],
        ["export", "digits", "--backend", "onnx", "--out", "e", "--shapes", "8x8,"],
        ["export", "digits", "--backend", "onnx", "--out", "e", "--add"],
        ["export", "digits", "--backend", "onnx", "--out", "e", "--sign", "nowhere"],
        ["export", "digits", "--backend", "onnx", "--out", "e", "--dispatch", "cond", "--hoist"],
        ["generate", "--out", "/dev/null"],
        ["generate", "--dispatch", "cond", "--decision", "per_sample"],
        ["generate", "--tau", "0.1", "--method", "fora"],
        ["calibrate", "--nfc", "8", "--psnr", "30"],
        ["calibrate", "--nfc", "nan"],
        ["inspect", "--draw", "x.txt"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_contradictions_and_impossible_values_load_nothing(arguments: list[str], onnx_small: Path) -> None:
    with nothing_loads():
        assert outcome([str(onnx_small) if one == "ENGINE" else one for one in arguments]) == "refused"
