"""Commands in a process of their own, forked from this one, so that nothing is imported again."""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rfc_export import main

WATCHED = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree")


class Ended(NamedTuple):
    """How a command ended: its exit code, below 0 the signal, and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()


def moments(folder: Path, act: Callable[[int], object]) -> Callable[[], int]:
    """Call `act` with a running number whenever Python touches a file in the folder; a function that says how often that was."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in WATCHED and any(isinstance(one, str | os.PathLike) and str(folder) in str(one) for one in arguments):
            count += 1
            act(count)

    sys.addaudithook(hook)
    return lambda: count


def ended(command: Callable[[], Any], folder: Path, *, before: Callable[[], object] = lambda: None, stdout: int | None = None) -> Ended:
    """Run a command as the entry point does, in a child process; `before` prepares the child."""
    out, err = folder.with_name(folder.name + ".out"), folder.with_name(folder.name + ".err")
    with out.open("wb") as out_file, err.open("wb") as err_file:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(out_file.fileno() if stdout is None else stdout, 1)
                os.dup2(err_file.fileno(), 2)
                sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=False)
                sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
                before()
                code = main.run(command)
            finally:
                os._exit(code)
    status = os.waitpid(child, 0)[1]
    return Ended(os.waitstatus_to_exitcode(status), out.read_text(), err.read_text())


def signalled(command: Callable[[], Any], folder: Path, number: int, moment: int) -> Ended:
    """The same, with a signal at the given touch of a file in the folder."""

    def before() -> None:
        moments(folder, lambda count: os.kill(os.getpid(), number) if count == moment else None)

    return ended(command, folder, before=before)


def touches(command: Callable[[], Any], folder: Path) -> int:
    """How often a command touches files in the folder."""
    read, write = os.pipe()

    def before() -> None:
        count = moments(folder, lambda _: None)
        own = os._exit

        def leave(code: int) -> None:
            os.write(write, str(count()).encode())
            own(code)

        os._exit = leave  # type: ignore[assignment]

    assert ended(command, folder, before=before).code == 0
    os.close(write)
    with os.fdopen(read) as stream:
        return int(stream.read())


SIGNALS = (signal.SIGINT, signal.SIGTERM)
