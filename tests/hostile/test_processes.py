"""Commands that are interrupted, whose pipe closes or whose disk is full: one line, and the old result or the new one, whole."""

import contextlib
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked_commands import SIGNALS, Ended, ended, signalled, touches

import rfc
import rfc_fx
from rfc_export import main
from rfc_export.artifact import writing
from rfc_export.cli import app
from rfc_export.commands import export as export_command
from rfc_fx.io.method_file import read_method
from rfc_fx.tools.commands import calibrate as calibrate_command
from rfc_fx.tools.commands import method_source
from rfc_fx.tools.output import OutputError, whole_files, write_json

pytestmark = pytest.mark.onnx

Command = Callable[[], Any]


def _written_engine(_: Any, out: Path, *, overwrite: bool, **__: Any) -> None:
    with writing(out, overwrite=overwrite) as folder:
        for name in ("rfc.json", "weights.safetensors"):
            (folder / name).write_text("new" * 1000)


def _saved(out: Path, comparison: Any, record: Any) -> list[Path]:
    with whole_files(out) as folder:
        for name in ("images.png", "schedule.png"):
            (folder / name).write_text("new" * 1000)
        write_json(folder / "summary.json", {"new": True})
    return [out / "images.png"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands without the minutes of work before their results are written."""
    method = rfc.RFC(tau=0.2)
    measured = SimpleNamespace(nfc=8.0, psnr_db=30.0, error=0.1)
    found = SimpleNamespace(measured=measured, method=method, threshold=0.2, tried=1)
    source = SimpleNamespace(name="digits", seeds=[0], groups=["3"])
    monkeypatch.setattr(method_source, "load_source", lambda *_, **__: source)
    monkeypatch.setattr(calibrate_command, "search", lambda *_, **__: found)
    monkeypatch.setattr(export_command, "exportable", lambda *_, **__: SimpleNamespace(model=None, calls=[], sampler=None, others=()))
    monkeypatch.setattr(export_command, "export_model", _written_engine)
    monkeypatch.setattr(export_command, "opened", lambda _: pytest.MonkeyPatch().context())
    monkeypatch.setattr(export_command, "read_manifest", lambda _: None)
    monkeypatch.setattr(export_command, "sizes", lambda *_: {"rfc.json": 3000})


def result(kind: str, out: Path) -> Command:
    """The command, and its result under `out`."""
    if kind == "results":
        return functools.partial(_draw, out)
    arguments = {
        "method": ["calibrate", "digits", "--nfc", "8", "--method", "rfc", "--out", str(out)],
        "engine": ["export", "digits", "--backend", "onnx", "--out", str(out), "--overwrite"],
        "engine.pt2": ["export", "digits", "--backend", "onnx", "--out", str(out), "--overwrite"],
    }[kind]
    return lambda: app(arguments)


def _draw(out: Path) -> None:
    out.mkdir(exist_ok=True)
    try:
        paths = _saved(out, None, None)
    except OutputError as error:  # as the application does
        print(f"rfc-fx: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(*paths)


KINDS = {"method": "m.json", "engine": "engine", "engine.pt2": "engine.pt2", "results": "drawn"}


def content(path: Path) -> Any:
    return {one.name: content(one) for one in sorted(path.iterdir())} if path.is_dir() else path.read_bytes()


def stripped(value: Any) -> Any:
    """Without the times in an archive."""
    return len(value) if isinstance(value, bytes) and value[:2] == b"PK" else value


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, quick: None) -> tuple[Command, Path, Any, Any]:
    """The command, where its result is, an old result, which is there, and a new one."""
    folder = tmp_path / "work"
    folder.mkdir()
    out = folder / KINDS[request.param]
    command = result(request.param, out)
    assert ended(command, folder).code == 0
    new = stripped(content(out))
    if out.is_dir():
        for one in out.iterdir():
            one.write_bytes(b"old")
    else:
        out.write_bytes(b"old")
    return command, folder, content(folder), {out.name: new}


def restore(folder: Path, old: Any) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, value in old.items():
        if isinstance(value, dict):
            restore_into = folder / name
            restore_into.mkdir()
            for inner, data in value.items():
                (restore_into / inner).write_bytes(data)
        else:
            (folder / name).write_bytes(value)


def whole(folder: Path, old: Any, new: Any) -> bool:
    now = content(folder)
    return bool(now == old or {name: stripped(value) for name, value in now.items()} == new)


def test_a_signal_at_any_moment_leaves_the_old_result_or_the_new_one(place: tuple[Command, Path, Any, Any]) -> None:
    command, folder, old, new = place
    count = touches(command, folder)
    assert count >= 4
    restore(folder, old)
    stopped = 0
    for moment in range(1, count + 1):
        number = SIGNALS[moment % 2]
        done = signalled(command, folder, number, moment)
        assert whole(folder, old, new), (number, moment, content(folder))
        assert done.code in (0, -number), done
        if done.code:
            stopped += 1
            assert done.lines == [f"rfc-fx: stopped by {signal.Signals(number).name}; no result is half-written"], done
        restore(folder, old)
    assert stopped > count / 2


def test_a_pipe_that_closed_loses_no_result(place: tuple[Command, Path, Any, Any]) -> None:
    command, folder, _, new = place
    read, write = os.pipe()
    os.close(read)
    done = ended(command, folder, stdout=write)
    os.close(write)
    assert done.code == -signal.SIGPIPE
    assert "Traceback" not in done.stderr
    assert {name: stripped(value) for name, value in content(folder).items()} == new


def test_standard_output_on_a_full_disk_loses_no_result(place: tuple[Command, Path, Any, Any]) -> None:
    command, folder, _, new = place
    full = os.open("/dev/full", os.O_WRONLY)
    done = ended(command, folder, stdout=full)
    os.close(full)
    assert done.code == 1
    assert done.lines[-1] == "rfc-fx: error: standard output: No space left on device"
    assert {name: stripped(value) for name, value in content(folder).items()} == new


def test_a_disk_that_is_full_leaves_the_old_result_in_one_line(place: tuple[Command, Path, Any, Any]) -> None:
    command, folder, old, _ = place
    done = ended(command, folder, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)))
    assert done.code in (1, 2)
    assert done.lines[-1].startswith("rfc-fx: error: ")
    assert "Traceback" not in done.stderr
    assert content(folder) == old


def test_two_of_one_command_on_one_path_leave_one_result_whole(place: tuple[Command, Path, Any, Any]) -> None:
    command, folder, _, new = place

    def both() -> None:
        children = []
        for _ in range(3):
            if (child := os.fork()) == 0:
                for _ in range(4):
                    command_quietly(command)
                os._exit(0)
            children.append(child)
        assert {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children} == {0}

    assert ended(both, folder).code == 0
    assert whole(folder, new, new), content(folder)


def command_quietly(command: Command) -> None:
    with contextlib.suppress(SystemExit):
        command()


@pytest.mark.usefixtures("quick")
def test_without_a_terminal_a_home_or_unicode_and_in_forty_columns_it_says_the_same(onnx_small: Path, tmp_path: Path) -> None:
    def poor() -> None:
        os.environ.update(COLUMNS="40", LC_ALL="C", LANG="C", TERM="dumb")
        os.environ.pop("HOME", None)
        sys.stdout.reconfigure(encoding="ascii")  # type: ignore[union-attr]

    folder = tmp_path / "work"
    folder.mkdir()
    done: Ended = ended(lambda: app(["verify", str(onnx_small)]), folder, before=poor)
    assert (done.code, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["manifest", "model", "files", "target", "versions", "programs"]
    done = ended(result("method", folder / "m.json"), folder, before=poor)
    assert done.code == 0
    read_method(folder / "m.json")


def test_ctrl_c_while_torch_is_being_imported_is_one_line() -> None:
    program = (
        "import os, signal, sys\n"
        "sent = []\n"
        "def hook(event, arguments):\n"
        "    if event == 'import' and arguments[0].startswith('torch.') and not sent:\n"
        "        sent.append(1)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(hook)\n"
        "from rfc_export.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "rfc-fx: stopped by SIGINT\n"


def test_a_record_that_json_has_no_words_for_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    from rfc_fx.io.method_file import MethodFileError, write_method

    write_method(tmp_path / "m.json", rfc.RFC(tau=0.1), {})
    before = content(tmp_path)
    with pytest.raises(MethodFileError, match="cannot be read again"):
        write_method(tmp_path / "m.json", rfc.RFC(tau=0.1), {"psnr": float("nan")})
    assert content(tmp_path) == before
    assert json.loads(before["m.json"])


def test_a_warning_of_this_package_is_one_line_without_its_code() -> None:
    assert main._as_line("no levels", rfc_fx.UnknownLevelsWarning, "driver.py", 7, "self.warn()") == "rfc-fx: warning: no levels\n"
    assert main._as_line("old", UserWarning, "other.py", 7) == "other.py:7: UserWarning: old\n"
