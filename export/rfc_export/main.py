"""Entry point of the command rfc-fx: signals, closed pipes and full disks end it as users of Unix expect, in one line.

Nothing heavy is imported here at first, so that Ctrl-C is answered while torch is still being loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None)
PATIENCE = 3
"""Signals after which a command that is still tidying up is ended at once."""


class Stopped(BaseException):
    """A signal that ends the command; what is half-written is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> None:
    """Run the command line, without libraries' warnings that are meant for programmers."""
    _at_once()
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.formatwarning = _as_line
    from rfc_export.cli import app

    raise SystemExit(run(app))


def _as_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of this package on one line for users; others' with the place in their code."""
    if category.__module__.split(".")[0] in ("rfc", "rfc_fx", "rfc_export"):
        return f"rfc-fx: warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def run(app: Callable[[], Any]) -> int:
    """The exit code of a command. A signal or a closed pipe ends the process by that signal, as a shell expects (130, 143, 141)."""
    _by_exception()
    try:
        code = _exit_code(app)
        if sys.stdout is not None:
            sys.stdout.flush()
    except Stopped as stopped:
        _at_once()
        _say(f"stopped by {signal.Signals(stopped.number).name}; no result is half-written")
        _end_by(stopped.number)
    except BrokenPipeError:
        _at_once()
        _silence()
        _end_by(getattr(signal, "SIGPIPE", signal.SIGTERM))
    except OSError as error:
        _silence()
        _say(f"error: {error.filename or 'standard output'}: {error.strerror or error}")
        code = 1
    except MemoryError:
        _say("error: not enough memory; pass a smaller batch, size or model")
        code = 1
    _at_once()
    return code


def _exit_code(app: Callable[[], Any]) -> int:
    try:
        app()
    except SystemExit as done:
        if isinstance(done.__context__, BrokenPipeError):  # typer makes exit code 1 of it
            raise done.__context__ from None
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _at_once() -> None:
    """Let signals end the process now, with one line: there is nothing to tidy up."""

    def leave(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, f"rfc-fx: stopped by {signal.Signals(number).name}\n".encode())
        _end_by(number)

    for number in SIGNALS:
        signal.signal(number, leave)


def _by_exception() -> None:
    """Let the first signal unwind the stack; later ones wait for that, but not for ever."""
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            raise Stopped(number)
        if len(seen) >= PATIENCE:
            _end_by(number)

    for number in SIGNALS:
        signal.signal(number, stop)


def _end_by(number: int) -> NoReturn:
    """End the process by a signal, so that whoever waits for it sees which."""
    signal.signal(number, signal.SIG_DFL)
    with suppress(AttributeError, ValueError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"rfc-fx: {text}", file=sys.stderr, flush=True)


def _silence() -> None:
    """Let what is left in the buffer of standard output go nowhere: the interpreter flushes it on its way out."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
