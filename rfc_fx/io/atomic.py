"""Files that are there whole or not at all, whatever interrupts the writer and whoever else writes the same path."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def temporary_beside(path: Path) -> Path:
    """A hidden name in the same folder that no other writer has; the ending stays, as writers of pictures read the format from it."""
    return path.with_name(f".{path.stem[:100]}-{secrets.token_hex(8)}{path.suffix[:20]}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that readers see the old one or the new one, also after a crash of the machine; OSError where that fails.

    The unfinished file has a name of its own and is removed on any exception, KeyboardInterrupt among them.
    """
    unfinished = temporary_beside(path)
    try:
        write(unfinished)
        unfinished.chmod(0o644)  # safetensors leaves files that only their owner can read
        sync(unfinished)
        os.replace(unfinished, path)
    finally:
        remove(unfinished)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the system write a file or the names in a folder to the disk; folders only where the system can."""
    is_folder = path.is_dir()
    with suppress(OSError) if is_folder else _nothing():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step (renameat2); False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def replace_folder(new: Path, path: Path) -> Path | None:
    """Put the folder `new` at `path`, and return where the old one is now; None where there was none.

    An interrupted call leaves the old folder or the new one under `path`.
    """
    if not path.exists():
        os.replace(new, path)
        return None
    if exchange(new, path):
        return new
    old = temporary_beside(path)
    with uninterrupted():
        os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old, path)
            raise
    return old


@contextmanager
def write_together(out: Path) -> Iterator[Path]:
    """A folder whose files move to the folder `out` when the block ends well, all before any other writer's; OSError where that fails."""
    staging = out / f".partial-{secrets.token_hex(8)}"
    try:
        staging.mkdir(mode=0o700)
        yield staging
        files = sorted(staging.iterdir())
        for file in files:
            if (out / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(out / file.name))
            sync(file)
        with _locked(out), uninterrupted():
            for file in files:
                os.replace(file, out / file.name)
        sync(out)
    finally:
        remove(staging)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for other writers of the folder; without a lock where the file system has none."""
    with ExitStack() as held:
        with suppress(OSError, ImportError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while a few renames belong together, or while tidying up; in the main thread, which gets them.

    Handlers are exchanged, as a signal that this thread blocks is delivered to another.
    """
    held: list[int] = []
    own: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and (handler := signal.getsignal(number)) is not None:
                own[number] = handler
                signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def remove(path: Path) -> None:
    """Remove a file or a folder of one's own, whole, whatever arrives meanwhile."""
    with uninterrupted():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
