"""`rfc-fx batch`: every line one picture, the same however it is batched, and going on where it was interrupted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import one_line_error, run

from rfc_export.cli import app
from rfc_fx.tools.requests import drawing
from rfc_fx.tools.requests.prompts import LEDGER, Job, add_line, drawn_already, read_prompts, write_picture
from rfc_fx.tools.requests.request import Request, RequestError
from rfc_fx.tools.requests.worker import Picture

LINES = [{"class": label, "seed": seed, "steps": 5, "id": f"{label}-{seed}"} for label, seed in ((3, 0), (8, 1), (1, 2))]


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def ledger(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LEDGER).read_text().splitlines()]


@pytest.mark.usefixtures("few_blocks")
def test_a_file_of_prompts_is_drawn_once_and_the_same_however_it_is_batched(tmp_path: Path) -> None:
    prompts, one, three = lines(tmp_path / "prompts.jsonl", LINES), tmp_path / "one", tmp_path / "three"
    run(app, "batch", "digits", "--prompts", lines(tmp_path / "first.jsonl", LINES[:2]), "--out", one, "--no-compile")
    before = {path.name: path.stat().st_mtime_ns for path in one.glob("*.png")}
    with (one / LEDGER).open("a") as file:
        file.write('{"name": "cut sho')  # a crash in the middle of a line
    said = run(app, "batch", "digits", "--prompts", prompts, "--out", one, "--no-compile").output
    assert "3 of 3 pictures, 2 of them were there" in said
    assert {name: (one / name).stat().st_mtime_ns for name in before} == before
    run(app, "batch", "digits", "--prompts", prompts, "--out", three, "--no-compile", "--batch", "3")
    names = sorted(path.name for path in one.glob("*.png"))
    assert names == sorted(path.name for path in three.glob("*.png"))
    assert len(names) == 3
    for name in names:
        assert (one / name).read_bytes() == (three / name).read_bytes()
    assert [entry["nfc"] for entry in ledger(three)] == [ledger(three)[0]["nfc"]] * 3
    assert {entry["request"]["label"] for entry in ledger(three)} == {3, 8, 1}


class Unreliable:
    """A worker that fails so many times, and then draws."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error, self.calls = failures, error, 0

    def draw(self, requests: Sequence[Request]) -> list[Picture]:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return [Picture(str(request.seed).encode(), 2, 5, 0.1) for request in requests]


JOBS = [Job(str(seed), Request(prompt="an apple", seed=seed)) for seed in range(3)]


def test_a_batch_that_fails_is_drawn_one_by_one() -> None:
    worker = Unreliable(1, MemoryError("too large"))
    done = drawing.drawn_by(worker, JOBS)
    assert [result.png for _, result in done if isinstance(result, Picture)] == [b"0", b"1", b"2"]
    assert worker.calls == 1 + 3


@pytest.mark.parametrize(("error", "attempts"), [(MemoryError("no"), 3), (RequestError("no such class"), 1)])
def test_a_request_is_tried_three_times_and_one_that_is_refused_once(error: Exception, attempts: int) -> None:
    worker = Unreliable(100, error)
    ((_, result),) = drawing.drawn_by(worker, JOBS[:1])
    assert result == f"{type(error).__name__}: {error}"
    assert worker.calls == attempts


def test_requests_that_fit_are_batched_together() -> None:
    jobs = [Job(str(i), Request(prompt="an apple", seed=i, steps=steps)) for i, steps in enumerate((5, 9, 5, 9, 5))]
    found = [[job.name for job in batch] for batch in drawing.batches(jobs, 2)]
    assert sorted(map(sorted, found)) == [["0", "2"], ["1", "3"], ["4"]]


def test_what_fails_is_tried_again_by_the_same_command(tmp_path: Path) -> None:
    failed = drawing.draw_all(iter([(JOBS[0], Picture(b"png", 2, 5, 0.1)), (JOBS[1], "MemoryError: no")]), tmp_path, lambda: None)
    assert [job.name for job, _ in failed] == ["1"]
    assert drawn_already(tmp_path) == {"0"}


def test_a_line_without_its_picture_and_a_picture_without_its_line_are_drawn_again(tmp_path: Path) -> None:
    add_line(tmp_path, JOBS[0], {})
    write_picture(tmp_path, JOBS[1], b"png")
    add_line(tmp_path, JOBS[2], {})
    write_picture(tmp_path, JOBS[2], b"png")
    assert drawn_already(tmp_path) == {"2"}


def test_another_request_or_model_has_another_name(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"prompt": "an apple", "id": "x"}])
    other = lines(tmp_path / "b.jsonl", [{"prompt": "a pear", "id": "x"}])
    names = {read_prompts(file, (model,))[0].name for file in (path, other) for model in ("emoji", "flux")}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"line 1: no JSON"),
        ("[" * 30_000, r"line 1: no JSON"),
        ('{"prompt": "a"}\n\n\n[]', r"line 4: expected an object"),
        ('{"prompt": "a", "sed": 1}', r"line 1: 'sed' is no field of a request; known are"),
        ('{"prompt": 3}', r"line 1: prompt must be a text, got 3"),
        ('{"prompt": "a", "class": 1}', r"line 1: needs either a prompt or a class, got both"),
        ('{"seed": 1}', r"got neither"),
        ('{"prompt": "a", "steps": 0}', r"steps must be an integer from 1 to 200, got 0"),
        ('{"prompt": "a", "seed": true}', r"seed must be an integer from 0"),
        ('{"prompt": "a", "width": 4096, "height": 4096}', r"width x height must be at most 4194304 pixels, got 16777216"),
        ('{"prompt": "a", "guidance": NaN}', r"guidance must be a number from 0 to 1000, got nan"),
        ('{"prompt": "a", "id": "../a"}', r"id must be letters, digits"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "a", "id": "x"}', r"line 2: stands twice; give it another id or seed"),
        ('{"prompt": "' + "a" * 4001 + '"}', r"prompt must have at most 4000 characters, got 4001"),
    ],
)
def test_a_line_that_is_no_request_is_refused_with_its_number(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_prompts(path, ())


@pytest.mark.usefixtures("few_blocks")
def test_a_request_that_the_pipeline_refuses_fails_alone(tmp_path: Path) -> None:
    prompts = lines(tmp_path / "prompts.jsonl", [{"prompt": "an apple"}, LINES[0]])
    error = one_line_error(app, "batch", "digits", "--prompts", prompts, "--out", tmp_path / "out", "--no-compile")
    assert "1 of 2 requests failed" in error
    assert "DigitsPipeline takes no prompt" in error
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
