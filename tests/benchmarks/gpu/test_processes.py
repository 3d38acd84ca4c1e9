"""Sections in processes of their own: what is ended, crashes or hangs is recorded with what it has written."""

import json
import re
import sys
from pathlib import Path

import pytest
from command import invoke

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.processes import Process


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
