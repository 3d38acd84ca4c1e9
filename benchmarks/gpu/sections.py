"""The sections of a run, each with its time, and what they leave in the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench, forget, left, reason
from benchmarks.gpu.checks import checks
from benchmarks.gpu.device import device_facts
from benchmarks.gpu.timing import timed
from benchmarks.gpu.workloads import LARGE
from rfc_fx.tools.summary_json import versions

Section = Callable[[Bench, dict[str, Any], float], None]


SECTIONS: dict[str, tuple[Section, float, float]] = {
    "device": (device_facts, 1, 30),
    "checks": (checks, 20, 120),
    **{name: (partial(timed, name=name), 45, most) for name, most in zip(LARGE, (180, 270, 180, 200), strict=True)},
}
"""By name: what to run, and the seconds without which it is not begun and after which it ends. What a section leaves is for the next."""


def run_section(bench: Bench, name: str) -> dict[str, Any]:
    """One section in its time; it is recorded whatever becomes of it."""
    run, least, most = SECTIONS[name]
    if left(bench.end) < least:
        return {"status": "skipped", "reason": f"{max(0.0, left(bench.end)):.0f} s left, {least:.0f} s needed"}
    begin = time.perf_counter()
    rows: dict[str, Any] = {}
    status: dict[str, Any] = {"status": "done"}
    try:
        run(bench, rows, min(bench.end, begin + most))
    except Exception as error:
        status = {"status": "failed", "reason": reason(error)}
    forget()
    rest = {"device": bench.facts.get("device"), "copy_gb_per_s": bench.facts.get("copy", {}).get("gb_per_s"), "versions": versions()}
    return status | {"seconds": time.perf_counter() - begin, "measured_on": rest, "rows": rows}
