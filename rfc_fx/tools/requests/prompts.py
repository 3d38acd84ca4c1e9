"""Prompts: a file with a request on each line, and the pictures of them that are there already."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rfc_fx.io.atomic import write_atomically
from rfc_fx.tools.requests.request import Limits, Request, RequestError, parse_request

LEDGER = "pictures.jsonl"
"""In the folder of results: one line of JSON for each picture that is there."""
ATTEMPTS = 3
"""Times that a request is drawn before it counts as failed."""


@dataclass(frozen=True)
class Job:
    """A request with the name of its picture."""

    name: str
    request: Request

    @property
    def file(self) -> str:
        """Of the picture."""
        return f"{self.name}.png"


def read_prompts(path: Path, drawn_by: tuple[str, ...], limits: Limits = Limits()) -> list[Job]:
    """The jobs of a file of JSON lines: `{"prompt": "an apple", "seed": 1, "id": "apple"}` (`parse_request`), `id` as the name if given.

    A name ends with a digest of the request and of `drawn_by` (model and settings), so that another request never passes for one that is
    there. RequestError with the line for what is no request, for an `id` that is none, and for a request that stands twice.
    """
    jobs: dict[str, Job] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}: no JSON: {str(error)[:100]}") from error
        own = record.pop("id", None) if isinstance(record, dict) else None
        if own is not None and not (isinstance(own, str | int) and re.fullmatch(r"[\w][\w.-]{0,99}", str(own))):
            raise RequestError(f"{where}: id must be letters, digits, . _ or -, at most 100, got {own!r:.60}")
        request = parse_request(record, where, limits)
        name = f"{own if own is not None else f'{number:06d}'}-{request.digest(*drawn_by)}"
        if name in jobs:
            raise RequestError(f"{where}: stands twice; give it another id or seed")
        jobs[name] = Job(name, request)
    return list(jobs.values())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((number, text) for number, line in enumerate(file, start=1) if (text := line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def drawn_already(out: Path) -> set[str]:
    """Names of the pictures that are there and have their line; a line that a crash has cut short counts for nothing."""
    found: set[str] = set()
    try:
        lines = (out / LEDGER).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            name = json.loads(line)["name"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(name, str) and (out / f"{name}.png").is_file():
            found.add(name)
    return found


def write_picture(out: Path, job: Job, png: bytes) -> None:
    """Write a picture, whole or not at all; drawn twice it is the same."""
    write_atomically(out / job.file, lambda path: path.write_bytes(png))


def add_line(out: Path, job: Job, facts: dict[str, Any]) -> None:
    """Add the line of a picture that is there; one write, behind whatever a crash has left without an end."""
    request = {name: value for name, value in asdict(job.request).items() if value is not None}
    text = json.dumps({"name": job.name, "file": job.file, "request": request, **facts}) + "\n"
    path = out / LEDGER
    with path.open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":
            text = "\n" + text
        file.write(text.encode())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, 2)
    last: bytes = file.read(1)
    return last
