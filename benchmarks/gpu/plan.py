"""What a run does, in order: sections with the seconds that each may take, and their rows with the seconds that each is expected to take.

Expected on an H100 or H200 with 16 processor cores and empty compiler caches, from Inductor's time for these graphs on other processors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

GRAPHS: Final = "CUDA graphs"
COMPILED: Final = "compiled"
BLOCKS: Final = "blocks compiled"
EAGER: Final = "eager"
TWIN: Final = "eager twin"

Way = Literal["CUDA graphs", "compiled", "blocks compiled", "eager", "eager twin"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant to time: full computation, or a method of `benchmarks.gpu.estimators`."""

    method: str = "full"
    way: Way = GRAPHS
    granularity: str | None = None
    expected_s: float

    @property
    def name(self) -> str:
        """As it is recorded."""
        parts = [self.method, self.granularity, "hoisted" if self.method != "full" and self.way in (GRAPHS, COMPILED) else None, self.way]
        return ", ".join(part for part in parts if part is not None)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Part of a run, in a process of its own."""

    limit_s: float
    """After which its process is ended."""
    begin_s: float = 0
    """Expected for the model and its capture, which begin while the section before it runs."""
    rows: tuple[Row, ...] = ()
    measure_s: float = 0
    """Expected for generations that count and for the profile."""
    steps: int = 50
    nfc: int = 14
    full_steps: int = 10
    """Steps of a generation of full computation: all are alike."""
    rounds: int = 3
    regional: bool = False
    """Whether equal blocks are compiled once, which deep models need here."""

    @property
    def expected_s(self) -> float:
        """All of it."""
        return self.begin_s + sum(row.expected_s for row in self.rows) + self.measure_s


DIT = (
    Row(expected_s=18),
    Row(method="RFE m=1", expected_s=28),
    Row(method="RFE m=1", granularity="stack", expected_s=18),
    Row(method="LogSNR", expected_s=22),
    Row(method="Taylor m=1", expected_s=22),
    Row(way=COMPILED, expected_s=12),
    Row(method="RFE m=1", way=COMPILED, expected_s=16),
    Row(way=EAGER, expected_s=3),
    Row(method="RFE m=1", way=TWIN, expected_s=5),
)

DEEP = (
    Row(way=BLOCKS, expected_s=18),
    Row(method="RFE m=1", expected_s=22),
    Row(method="RFE m=1", granularity="stack", expected_s=15),
    Row(method="LogSNR", expected_s=18),
    Row(method="Taylor m=1", expected_s=18),
)

LATER = (Row(expected_s=18), Row(method="RFE m=1", expected_s=28), Row(method="RFE m=1, sketch 16, int8", expected_s=30))

PLAN: dict[str, Section] = {
    "device": Section(limit_s=40, measure_s=12),
    "checks": Section(limit_s=90, measure_s=72),
    "dit-xl-1": Section(limit_s=225, begin_s=6, rows=DIT, measure_s=20),
    "flux": Section(limit_s=200, begin_s=20, rows=DEEP, measure_s=55, steps=28, nfc=8, rounds=2, regional=True),
    "wan": Section(limit_s=110, begin_s=14, rows=DEEP[:2], measure_s=25, rounds=2, regional=True),
    "dit-xl-8": Section(limit_s=170, begin_s=6, rows=LATER, measure_s=30),
    "rivals": Section(limit_s=170, begin_s=6, measure_s=140, rounds=2),
}

FIRST = ("device", "checks", "dit-xl-1", "flux", "wan")
"""What one call of nine minutes has room for; the others are for a second one."""


class Line(NamedTuple):
    """One line of the plan."""

    section: str
    what: str
    begins_s: float
    expected_s: float
    limit_s: float


def lines(names: Sequence[str], seconds: float, plan: Mapping[str, Section] = PLAN) -> Iterator[Line]:
    """The sections of a run of so many seconds, and their rows, each with the second at which it is expected to begin."""
    now = 0.0
    for name in names:
        section = plan[name]
        limit = min(section.limit_s, seconds - now)
        yield Line(name, "", now, section.expected_s, limit)
        begin = now + section.begin_s
        for row in section.rows:
            yield Line(name, row.name, begin, row.expected_s, limit)
            begin += row.expected_s
        now += min(section.expected_s, limit)
