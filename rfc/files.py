"""Files that others wrote: opened once, regular files only, and JSON within bounds that every reader can rely on.

What passes here raises no OverflowError, RecursionError or UnicodeEncodeError later: integers fit 64 bits, numbers are finite,
nesting is bounded, names occur once and texts are valid Unicode.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_JSON_BYTES = 64 << 20
"""A larger file of JSON is refused before it is read."""

MOST_DEPTH = 64
"""Lists and objects inside each other, at most."""


class FileError(ValueError):
    """A file that cannot be read, is no regular file, is too large, or is no JSON within the bounds."""


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; FileError for pipes, devices and folders, and for links where `follow` is False.

    The open file is checked, so that nothing can take its place between the check and the read; a pipe does not block.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    if not follow:
        if path.is_symlink():
            raise FileError("is a link")
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise FileError("is missing") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise FileError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError("is no regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The content of a regular file; FileError for one of more than `most` bytes, of which nothing is read."""
    with open_regular(path, follow=follow) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise FileError(f"has {size} bytes, at most {most} are expected")
        try:
            content = stream.read(most + 1)  # it may grow meanwhile
        except OSError as error:
            raise FileError(f"cannot be read: {error.strerror or error}") from error
    if len(content) > most:
        raise FileError(f"has more than {most} bytes")
    return content


def read_json(path: Path, *, most: int = MOST_JSON_BYTES, follow: bool = True, finite: bool = True) -> Any:
    """The JSON in a file; FileError says what is wrong with it, without the path."""
    return parse_json(read_bytes(path, most, follow=follow), finite=finite)


def parse_json(content: bytes, *, finite: bool = True) -> Any:
    """JSON in UTF-8 with integers of 64 bits, each name once, valid texts and bounded nesting; FileError for any other.

    `finite`: whether NaN and Infinity, which are no JSON but which Python writes, are refused too.
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refused if finite else float,
            object_pairs_hook=_each_once,
        )
    except FileError:
        raise
    except RecursionError as error:
        raise FileError(f"no JSON: nested deeper than {MOST_DEPTH}") from error
    except ValueError as error:
        raise FileError(f"no JSON: {error}") from error
    _check(value)
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise FileError(f"no JSON: an integer of {len(text.lstrip('-'))} digits, which 64 bits do not hold")
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise FileError(f"no JSON: the number {text[:20]} is too large")
    return number


def _refused(constant: str) -> float:
    raise FileError(f"no JSON: {constant} is no number of JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise FileError(f"no JSON: {next(ascii(name) for name in names if names.count(name) > 1)[:80]} occurs twice in one object")
    return record


def _check(value: Any) -> None:
    """Nesting and texts, without recursion."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        if not level:
            return
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += (*one, *one.values())
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not one.isascii():
                _check_text(one)
        level = below
    raise FileError(f"no JSON: nested deeper than {MOST_DEPTH}")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FileError(f"no JSON: {ascii(text)[:80]} is no valid Unicode") from error
