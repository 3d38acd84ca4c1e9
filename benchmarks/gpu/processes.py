"""Processes: each section in one of its own, which is told when its turn comes and ended when its time is over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE_S = 5.0
"""After its time, in which a section writes down what it has."""


class Process:
    """A process that gets ready at once, and does its work when it is told."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(list(command), stdin=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, seconds: float) -> str | None:
        """Tell it that it has so many seconds, and wait; why it did not end well, or None. Whatever it does, it has ended then."""
        begin = time.monotonic()
        try:
            self._process.communicate(f"{seconds}\n", timeout=seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            self.end()
            return f"ended after {time.monotonic() - begin:.0f} s: it did not end in its {seconds:.0f} s"
        except BrokenPipeError:
            self._process.wait()
        code = self._process.returncode
        return None if code == 0 else f"its process ended with code {code}"

    def end(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def wait_for_turn() -> float:
    """In such a process: wait until it is told, and return the seconds that it has; SystemExit where nobody will tell."""
    line = sys.stdin.readline()
    if not line.strip():
        raise SystemExit(1)
    return float(line)
