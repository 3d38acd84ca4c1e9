"""A run of the laboratory: every method at every budget of every sampler, and the files it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rfc_fx
from benchmarks.files import read_json, write_text
from benchmarks.quality import plots
from benchmarks.quality.cells import MAIN_KINDS, kind
from benchmarks.quality.closed_loop import Drawn, Loop
from benchmarks.quality.entry import FULL
from benchmarks.quality.judging import Cell, Judge, ReferenceSamples
from benchmarks.quality.methods import ENTRIES, METHODS
from benchmarks.quality.plan import Plan
from benchmarks.quality.record import Store, key, read_arrays
from benchmarks.quality.report import markdown
from benchmarks.quality.workloads import Bench, Sampler
from rfc_fx.tools.calibrate import named
from rfc_fx.tools.summary_json import versions

ORDER = [entry.name for entry in ENTRIES]


def settings(bench: Bench, plan: Plan, judge: Judge, *, compiles: bool, protocol: str) -> dict[str, Any]:
    """Everything that decides what was measured."""
    return {
        "model": bench.workload.name,
        "what": bench.workload.what,
        "real": bench.workload.real_is,
        "real_samples": judge.real_count,
        "guidance": bench.workload.guidance,
        "samplers": {s.name: {"what": s.what, "steps": s.steps, "budgets": list(s.budgets), "shown": list(s.shown)} for s in plan.samplers},
        "samples": plan.samples,
        "groups": plan.groups,
        "batch": plan.batch,
        "calibration_samples": plan.calibration_batches * plan.batch,
        "compiled": compiles,
        "device": str(bench.device),
        "dtype": str(next(bench.model.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "protocol": protocol,
    }


def closed_loop(loop: Loop, judge: Judge, plan: Plan, store: Store, done: Callable[[], None]) -> None:
    """All cells that the store has not; it is written after every one."""
    references: dict[str, ReferenceSamples] = {}

    def keep(drawn: Drawn, sampler: Sampler, budget: int, name: str, more: dict[str, Any]) -> None:
        cell = Cell(drawn, references[sampler.name], judge, loop.lot.labels, plan.groups)
        shown = bool(sampler.shown) if name == FULL else budget in sampler.shown and kind(name) in MAIN_KINDS
        errors = None if name == FULL else cell.errors
        store.keep(sampler.name, budget, name, cell.figures() | more, errors, drawn.samples if shown else None)
        done()

    for sampler in plan.samplers:
        drawn = loop.full(sampler)
        references[sampler.name] = ReferenceSamples.of(drawn, judge)
        keep(drawn, sampler, sampler.steps, FULL, {})
    by_name = {sampler.name: sampler for sampler in plan.samplers}
    for cell in store.cells.values():
        if cell.get("threshold") is not None and cell["method"] in METHODS and cell["sampler"] in by_name:
            loop.remember(METHODS[cell["method"]], by_name[cell["sampler"]], cell["budget"], cell["threshold"])
    for entry in plan.entries:
        for sampler in plan.samplers:
            for budget in sampler.judged_at(entry.kind):
                if key(sampler.name, budget, entry.name) in store.cells:
                    done()
                    continue
                try:
                    method, calibration = loop.method(entry, sampler, budget)
                    loop.told(f"{entry.name}, {sampler.name}, NFC {budget}")
                    more: dict[str, Any] = {}
                    if calibration is not None:
                        more = {"threshold": calibration.threshold, "calibrated_nfc": calibration.value, "measured": calibration.measured}
                    if entry.forecasts:
                        more = {"forecast": named(method.estimator)}
                    keep(loop.draw(method, sampler), sampler, budget, entry.name, more)
                except rfc_fx.RFCError as error:
                    store.refused[entry.name] = str(error).partition("\n")[0]
                store.write(ORDER)


def write(store: Store) -> list[Path]:
    """Write the record, the pictures and the report; return the paths of the last two."""
    store.write(ORDER)
    return redraw(store.out, store.name)


def redraw(out: Path, model: str) -> list[Path]:
    """Write the report and the pictures of the record in a folder; return their paths."""
    record = read_json(out / f"{model}.json")
    report = out / f"{model}.md"
    write_text(report, markdown(record))
    return [report, *plots.draw(record, read_arrays(out / f"{model}.npz"), out)]
