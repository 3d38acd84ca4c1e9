"""Terminal: results on standard output, progress on standard error; a pipe that closes or a disk that is full ends no work."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from rich.console import Console


class _Terminal(Console):
    """A console that leaves a closed pipe to the entry point (`rfc_export.main`), which knows the exit code."""

    def on_broken_pipe(self) -> None:
        """Raise it again."""
        raise BrokenPipeError


def terminal(**options: Any) -> Console:
    """Standard output."""
    return _Terminal(**options)


def progress_terminal() -> Console:
    """Standard error, for what is of no use afterwards: where it cannot be written, nothing is."""
    return Console(file=_Lossy(sys.stderr)) if sys.stderr is not None else Console(quiet=True)  # type: ignore[arg-type]


class _Lossy:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        """Flush, as far as that is possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def note_progress(text: str) -> None:
    """A line about what is being done, dropped where it cannot be written."""
    if sys.stderr is not None:
        lossy = _Lossy(sys.stderr)
        lossy.write(f"{text}\n")
        lossy.flush()
