"""`rfc-fx batch --workers 2`: actors of Ray Data, one killed in the middle. Slow; skipped without Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import run

from rfc_export.cli import app
from rfc_fx.tools.requests import drawing
from rfc_fx.tools.requests.prompts import LEDGER, Job
from rfc_fx.tools.requests.request import Request
from rfc_fx.tools.requests.worker import Picture, WorkerSettings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
PICTURES = 24


def actors(process: psutil.Process) -> list[psutil.Process]:
    """The processes that draw."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "MapWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def ledger(out: Path) -> list[str]:
    path = out / LEDGER
    return [json.loads(line)["name"] for line in path.read_text().splitlines()] if path.exists() else []


def started(out: Path, prompts: Path) -> subprocess.Popen[str]:
    command = ["batch", "digits", "--prompts", prompts, "--out", out, "--workers", 2, "--batch", 2, "--no-compile"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "export")))}
    arguments = [sys.executable, "-m", "rfc_export.main", *map(str, command)]
    return subprocess.Popen(arguments, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_workers_that_are_killed_lose_nothing_and_an_interrupted_command_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="pip install 'rfc-fx[ray]'")
    prompts, one, two = tmp_path / "prompts.jsonl", tmp_path / "one", tmp_path / "two"
    records = [{"class": index % 10, "seed": index, "steps": 100} for index in range(PICTURES)]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))

    def begun(drawn: int) -> subprocess.Popen[str]:
        """The command, after so many pictures."""
        command = started(two, prompts)
        while len(ledger(two)) < drawn:
            assert command.poll() is None, command.communicate()
            time.sleep(0.02)
        return command

    command = begun(2)
    os.kill(actors(psutil.Process(command.pid))[0].pid, signal.SIGKILL)
    while len(ledger(two)) < PICTURES // 2:  # the others go on
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=120)
    there = {path.name: path.stat().st_mtime_ns for path in two.glob("*.png")}
    assert PICTURES // 2 <= len(there) < PICTURES

    command = begun(len(there) + 1)
    os.kill(actors(psutil.Process(command.pid))[-1].pid, signal.SIGKILL)
    said, errors = command.communicate(timeout=300)
    assert command.returncode == 0, errors
    assert f"{PICTURES} of {PICTURES} pictures, {len(there)} of them were there" in said
    assert {name: (two / name).stat().st_mtime_ns for name in there} == there  # not drawn again

    run(app, "batch", "digits", "--prompts", prompts, "--out", one, "--no-compile", "--batch", "2")
    names = sorted(path.name for path in one.glob("*.png"))
    assert len(names) == PICTURES
    assert sorted(path.name for path in two.glob("*.png")) == names
    assert sorted(ledger(two)) == sorted(path.removesuffix(".png") for path in names)  # each once
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_a_request_that_kills_its_worker_every_time_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="pip install 'rfc-fx[ray]'")

    class Mortal:  # defined here, so that it travels to the workers by value
        def __init__(self, settings: Any) -> None:
            pass

        def __call__(self, columns: dict[str, Any]) -> dict[str, list[Any]]:
            import os
            import pickle

            batches = [pickle.loads(batch) for batch in columns["batch"]]
            if any(job.name == "3" for batch in batches for job in batch):
                os._exit(1)
            return {"done": [pickle.dumps([(job, Picture(b"", 2, 5, 0.1)) for job in batch]) for batch in batches]}

    monkeypatch.setattr(drawing, "Actor", Mortal)
    jobs = [Job(str(seed), Request(prompt="an apple", seed=seed)) for seed in range(8)]
    done = {job.name: result for job, result in drawing.draw_with_ray(WorkerSettings(model="digits"), jobs, 2, 2)}
    assert sorted(done) == [job.name for job in jobs]
    assert {name for name, result in done.items() if isinstance(result, str)} == {"2", "3"}  # of one batch
    assert done["3"] == "its worker died 3 times"
