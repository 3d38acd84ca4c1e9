"""The sections of a run, and what they leave in the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.files import write_json
from benchmarks.gpu.bench import Bench, forget, left, reason
from benchmarks.gpu.checks import checks
from benchmarks.gpu.device import device_facts
from benchmarks.gpu.rivals import timed_rivals
from benchmarks.gpu.timing import timed
from benchmarks.gpu.workloads import LARGE
from rfc_fx.tools.summary_json import versions

Run = Callable[[Bench, dict[str, Any], float], None]

LEAST_S = 5.0
"""Without which a section is not begun."""


RUNS: dict[str, Run] = {
    "device": device_facts,
    "checks": checks,
    **{name: partial(timed, name=name) for name in LARGE if name != "rivals"},
    "rivals": timed_rivals,
}
"""By the name in the plan."""


def run_section(bench: Bench, name: str, path: Path | None = None) -> dict[str, Any]:
    """One section up to the end of the bench's time; written to `path` as it comes, and recorded whatever becomes of it."""
    if left(bench.end) < LEAST_S:
        return {"status": "skipped", "reason": f"{max(0.0, left(bench.end)):.0f} s left, {LEAST_S:.0f} s needed"}
    begin = time.perf_counter()
    rows: dict[str, Any] = {}
    section: dict[str, Any] = {"status": "begun", "settings": bench.settings, "rows": rows}

    def save() -> None:
        rest = {"device": bench.facts.get("device"), "copy_gb_per_s": bench.facts.get("copy", {}).get("gb_per_s"), "versions": versions()}
        section.update({"seconds": time.perf_counter() - begin, "measured_on": rest})
        if path is not None:
            write_json(path, section)

    bench.save = save
    try:
        run = RUNS[name]
        if name in ("device", "checks"):
            bench.turn()
        run(bench, rows, bench.end)
        section["status"] = "done"
    except Exception as error:
        section |= {"status": "failed", "reason": reason(error)}
    save()
    forget()
    return section


def device_of(tiny: bool) -> torch.device:
    """Where a run takes place."""
    return torch.device("cpu" if tiny else "cuda")
