"""Atomic writes: readers see one file or the other, whoever writes and whatever interrupts."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from rfc_fx.io import atomic
from rfc_fx.io.atomic import exchange, replace_folder, uninterrupted, write_atomically, write_together


def test_many_writers_of_one_path_are_seen_whole_by_every_reader(tmp_path: Path) -> None:
    path, stop, seen = tmp_path / "p.json", threading.Event(), Counter[int]()
    write_atomically(path, lambda part: part.write_text("0" * 10_000))

    def write(number: int) -> None:
        for _ in range(20):
            write_atomically(path, lambda part: part.write_text(str(number) * 10_000))

    def read() -> None:
        while not stop.is_set():
            text = path.read_text()
            seen[len(text)] += 1
            assert len(set(text)) == 1

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert set(seen) == {10_000}
    assert [one.name for one in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, OSError, MemoryError])
def test_nothing_is_left_of_a_writer_that_fails_in_any_way(failure: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "p").write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        raise failure

    with pytest.raises(failure):
        write_atomically(tmp_path / "p", write)
    with pytest.raises(failure), write_together(tmp_path) as folder:
        write(folder / "p")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"p": "old"}


def test_the_ending_of_a_name_stays_and_long_names_fit(tmp_path: Path) -> None:
    names: list[str] = []
    path = tmp_path / ("x" * 240 + ".png")
    write_atomically(path, lambda part: (names.append(part.name), part.touch()))
    assert names[0].endswith(".png")
    assert path.exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folders_change_places_and_no_moment_is_without_one(can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    left = replace_folder(tmp_path / "new", tmp_path / "old")
    assert left is not None
    assert (tmp_path / "old" / "new").exists()
    assert (left / "old").exists()


def test_what_cannot_be_exchanged_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "one", tmp_path / "none")


def test_a_signal_waits_for_what_belongs_together() -> None:
    reached = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it

    def interrupted() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_files_that_belong_together_move_when_all_are_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()

    def write() -> None:
        with write_together(tmp_path) as folder:
            (folder / "a").write_text("new")
            (folder / "b").write_text("new")

    with pytest.raises(IsADirectoryError):
        write()
    assert (tmp_path / "a").read_text() == "old"
    assert {one.name for one in tmp_path.iterdir()} == {"a", "b"}
