"""Fuzzing: of every kind of file, mutations end in this package's error or in a result, within bounds of time and memory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest
from fuzzing import MEBIBYTES, Kind, run
from mutations import changed_bytes

pytestmark = pytest.mark.onnx


@pytest.fixture(scope="module")
def kinds(onnx_two_calls: Path) -> Iterator[dict[str, Kind]]:
    memory = Path("/dev/shm")  # a quarter of the time is that of files on a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield fuzzing.kinds(onnx_two_calls, Path(folder) / "work")


TRIES = 400
"""Of each kind; `make fuzz` has more."""

KINDS = ("manifest", "weights", "archive", "program", "machine code", "call", "method", "predictor", "model")


@pytest.mark.parametrize("name", KINDS)
def test_hostile_files_are_refused_or_read_within_bounds(name: str, kinds: dict[str, Kind]) -> None:
    record = run(kinds[name], TRIES)
    assert not record.failures, record.failures[:3]
    assert record.grown_mib <= MEBIBYTES
    assert record.refused
    assert record.accepted  # most mutations of a file that is never read right would be refused for one reason alone


def test_every_kind_is_fuzzed(kinds: dict[str, Kind]) -> None:
    assert set(kinds) == set(KINDS)


def test_a_reader_that_fails_or_hangs_is_found() -> None:
    def fails(content: bytes) -> None:
        raise KeyError(content)

    def hangs(content: bytes) -> None:
        while True:
            content.count(b"x")

    assert len(run(Kind(lambda generator: changed_bytes(b"abc", generator), fails), 3).failures) == 3
    assert "Hang" in run(Kind(lambda _: b"", hangs), 1).failures[0]
