"""What commands leave behind: files that are there whole or not at all, and the spread of a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rfc_fx.errors import RFCError
from rfc_fx.io.atomic import write_together
from rfc_fx.tools import pictures
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.compare import Comparison
from rfc_fx.tools.terminal import progress_terminal
from rfc_fx.tools.variants import Timing


def check_writable(out: Path) -> None:
    """OptionError where the folder cannot be made or written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OptionError(f"--out {out}: cannot be written: {error.strerror or error}; pass another folder") from error


class OutputError(RFCError):
    """Results that could not be written."""


@contextmanager
def whole_files(out: Path) -> Iterator[Path]:
    """A folder whose files move to `out` when all of them are there; a run that fails leaves `out` as it was.

    They move together: Ctrl-C waits, and so does another command that writes the same folder. OutputError for a full or read-only disk.
    """
    try:
        with write_together(out) as folder:
            yield folder
    except OSError as error:
        raise OutputError(f"{out}: could not be written, what was there is as it was: {error.strerror or error}") from error


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, which has no inf and no nan."""
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def save_comparison(out: Path, comparison: Comparison, record: dict[str, Any], *more: Callable[[Path], object]) -> list[Path]:
    """Write images.png, schedule.png, summary.json and what `more` writes, and return all paths; printing comes after."""
    with whole_files(out) as folder:
        for write in more:
            write(folder)
        pictures.save_images(comparison, folder / "images.png")
        pictures.save_schedule(comparison, folder / "schedule.png")
        write_json(folder / "summary.json", record)
        names = sorted(path.name for path in folder.iterdir())
    return [out / name for name in names]


def print_paths(paths: Iterable[Path]) -> None:
    """Print each path on a line."""
    for path in paths:
        typer.echo(path)


def progress() -> Progress:
    """Bars with a description, a count, and the time taken and left, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = progress_terminal()
    return Progress(*columns, console=console, refresh_per_second=4, disable=not console.is_terminal)  # a log has no use for bars


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[tuple[Callable[[], object], Callable[[str], object]]]:
    """One bar: (advance by one, replace the description)."""
    with progress() as bars:
        task = bars.add_task(description, total=total)
        yield lambda: bars.advance(task), lambda text: bars.update(task, description=text)


def print_notes(console: Console, notes: list[str]) -> None:
    """Print each note on a line, wrapped to the terminal."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def time_cell(timing: Timing) -> str:
    """Median, and the smallest and the largest below it, in ms."""
    return f"{timing.median_ms:.0f}\n{timing.min_ms:.0f}-{timing.max_ms:.0f}"
