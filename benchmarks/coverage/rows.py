"""Rows: what `benchmarks.coverage` saw of each class, kept as JSON and shown as Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import typer

from benchmarks.files import Record, read_json, write_json, write_text
from rfc.granularity import GranularityName
from rfc_fx.tools.summary_json import versions


@dataclass
class Inductor:
    """What the real Inductor made of one class, with default options."""

    error: str = ""
    """Why the cached model does not compile."""
    difference: float | None = None
    """Largest difference of the cached model compiled and eager, relative to the largest number of the output."""
    plain_error: str = ""
    """Why the plain model does not compile."""

    @property
    def cell(self) -> str:
        """As the table has it: of the cached model and of the plain one."""
        ours = "-" if self.error else f"{self.difference:.0e}"
        return f"{ours} / {'-' if self.plain_error else 'yes'}"


@dataclass
class ClassCoverage:
    """What was seen of one class."""

    name: str
    captured: bool = False
    sites: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    heavy_left: list[str] = field(default_factory=list)
    """Heavy operations inside the repeated blocks that ESTIMATE still runs."""
    full_difference: float | None = None
    """Largest absolute difference of an all-full step and the model."""
    estimate_difference: float | None = None
    """Largest absolute difference of FULL, FULL, ESTIMATE with unchanged inputs and FULL."""
    frames: int | None = None
    breaks: int | None = None
    state_bytes: dict[str, int] = field(default_factory=dict)
    """By granularity."""
    estimate_share: float | None = None
    """FLOPs of ESTIMATE over FULL's at the published width with 2 blocks of each kind."""
    errors: list[str] = field(default_factory=list)
    inductor: Inductor | None = None

    def __post_init__(self) -> None:
        held: Any = self.inductor
        if isinstance(held, dict):  # as JSON has it
            self.inductor = Inductor(**held)

    @property
    def passed(self) -> bool:
        """Every column as it should be."""
        return not self.errors


COLUMNS = (
    "class",
    "sites",
    "rejected",
    "FULL - model",
    "same input - FULL",
    "ESTIMATE FLOPs",
    "KiB module / block / stack",
    "frames",
    "breaks",
    "Inductor / plain",
)


def markdown(rows: list[ClassCoverage]) -> str:
    """The rows as a table, and the reasons of those that fail a check."""
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|" + len(COLUMNS) * "---|",
    ]
    for row in rows:
        state = " / ".join(f"{row.state_bytes[name] / 1024:.0f}" if name in row.state_bytes else "-" for name in get_args(GranularityName))
        cells = [
            row.name if row.passed else f"{row.name} (!)",
            str(len(row.sites)),
            str(len(row.rejected)),
            "-" if row.full_difference is None else f"{row.full_difference:.0e}",
            "-" if row.estimate_difference is None else f"{row.estimate_difference:.0e}",
            "-" if row.estimate_share is None else f"{row.estimate_share:.2%}",
            state,
            str(row.frames if row.frames is not None else "-"),
            str(row.breaks if row.breaks is not None else "-"),
            "not run" if row.inductor is None else row.inductor.cell,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", summary(rows, " (!) marks the others:")]) + "\n"


def summary(rows: list[ClassCoverage], others: str = " The others:") -> str:
    """How many classes pass every check, and the reasons of the others."""
    failed = [row for row in rows if not row.passed]
    reasons = [f"* {row.name}: {'; '.join(row.errors)}" for row in failed]
    return "\n".join([f"{len(rows) - len(failed)} of {len(rows)} classes pass every check.{others}", "", *reasons])


def public(error: str) -> str:
    """An error without the folders of the machine it was seen on."""
    return re.sub(r"/\S*/site-packages/", "", error)


PROTOCOL = """# Coverage

`python -m benchmarks.coverage --out benchmarks/results/coverage`, torch {torch}, diffusers {diffusers}, on a CPU.
Every class is built small: 2 blocks of each kind, random weights, none of them near zero.

* FULL - model: largest absolute difference of an all-full step and the model itself.
* same input - FULL: the same of FULL, FULL, ESTIMATE with unchanged inputs and FULL.
* ESTIMATE FLOPs: share of FULL's at the published width, with 2 blocks of each kind (the share falls with depth).
* KiB: state of the small model, by granularity; all three are run.
* frames, breaks: compiled frames and graph breaks over two generations.
* Inductor / plain: the largest difference of the cached model compiled (default options, `fullgraph=True`) and eager in four steps, two
  of them estimated, relative to the largest number of the output; then whether the plain model compiles. -: it does not; reasons below.
  `--inductor` fills this column in, class by class, and goes on where it stopped.
* rejected: branches that are no sites; the reasons are at the end.

"""


def report(rows: list[ClassCoverage], made_with: Record) -> str:
    """The whole page: versions, protocol, table, and why each rejected branch is none."""
    reasons = [f"* {row.name}: {'; '.join(_counted(why for _, why in row.rejected))}" for row in rows if row.rejected]
    seen = [(row.name, row.inductor) for row in rows if row.inductor is not None]
    failed = [f"* {name}, the cached model: {one.error}" for name, one in seen if one.error]
    failed += [f"* {name}, the plain model: {one.plain_error}" for name, one in seen if one.plain_error]
    table = PROTOCOL.format(**made_with) + markdown(rows)
    return "\n".join([table, "## Not compiled by Inductor", "", *failed, "", "## Rejected branches", "", *reasons]) + "\n"


def _counted(reasons: Iterable[str]) -> list[str]:
    """Reasons with how often each holds, node names left out."""
    counts = Counter(re.sub(r"ends at \S+", "ends behind it", reason) for reason in reasons)
    return [f"{count} x {reason}" for reason, count in counts.items()]


def read(out: Path, *, same_versions: bool = False) -> list[ClassCoverage]:
    """The rows of an earlier run; `same_versions` refuses those of others than this machine's."""
    record = read_json(out / "coverage.json")
    if same_versions and record["versions"] != versions():
        raise typer.BadParameter(f"{out}: holds rows of {record['versions']}, this is {versions()}; pass another folder")
    return [ClassCoverage(**row) for row in record["rows"]]


def write(out: Path, rows: list[ClassCoverage], made_with: Record | None = None) -> None:
    """Write the record and the page; `made_with`: the versions that the rows are of, this machine's by default."""
    record: Record = {"versions": made_with or versions(), "rows": [asdict(row) for row in rows]}
    write_json(out / "coverage.json", record)
    write_text(out / "coverage.md", report(rows, record["versions"]))
