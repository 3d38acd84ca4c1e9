"""The record of a latency run: times by variant against compiled full computation, and what compiling them counted."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import rfc_fx
from benchmarks.files import write_json, write_text
from benchmarks.latency import plots
from benchmarks.latency.rivals.rival import Rival
from benchmarks.latency.tables import markdown
from benchmarks.latency.timing import TimedVariant, figures
from rfc.phase import ESTIMATE, FULL


def record(variants: list[TimedVariant], steps: int, nfc: int, against: str = "full, compiled") -> dict[str, Any]:
    """Times by variant, and what they are against compiled full computation, the variant of that name."""
    full = next(variant for variant in variants if variant.name == against)
    whole, step = statistics.median(full.generations_ms), statistics.median(full.steps_ms[FULL.name])
    rows: dict[str, Any] = {}
    for variant in variants:
        generation = statistics.median(variant.generations_ms)
        rows[variant.name] = {
            "generation": figures(variant.generations_ms),
            **{phase: figures(values) for phase, values in variant.steps_ms.items() if values},
            "first_generation_with_compilation_s": variant.first_s,
            "speedup_vs_compiled_full": whole / generation,
            **_cached(variant, whole / generation, step, steps),
            **_state(variant),
            **_compilation(variant),
            **({"peak_bytes": variant.peak_bytes} if variant.peak_bytes is not None else {}),
            **({"notes": variant.notes} if variant.notes else {}),
        }
    return rows


def _cached(variant: TimedVariant, speedup: float, full_ms: float, steps: int) -> dict[str, Any]:
    """What only a model behind a cache has."""
    if variant.cache is None:
        return {}
    stats = variant.cache.stats
    row: dict[str, Any] = {"nfc": stats.nfc, "full_steps": [step for step, phase in enumerate(stats.phases) if phase == FULL.name]}
    row["share_of_bound"] = speedup / (steps / stats.nfc)
    if variant.steps_ms.get(ESTIMATE.name):
        row["estimate_share_of_compiled_full"] = statistics.median(variant.steps_ms[ESTIMATE.name]) / full_ms
    if variant.reads is not None:
        row["host_reads"] = variant.reads
    return row


def _state(variant: TimedVariant) -> dict[str, Any]:
    if isinstance(variant.cache, rfc_fx.CachedModel):
        plan = variant.cache.plan()
        return {
            "state_bytes": plan.state_bytes,
            "estimate_flops_share": plan.estimate_share,
            "capture_s": variant.cache.compiled.seconds,
        }
    return {"state_bytes": variant.cache.state_bytes()} if isinstance(variant.cache, Rival) else {}


def _compilation(variant: TimedVariant) -> dict[str, Any]:
    if not variant.compiles:
        return {}
    both = variant.warming + variant.counting
    return {
        "graphs": both.graphs,
        "graph_breaks": both.graph_breaks,
        "recompiles": both.recompiles,
        "frames_given_up": both.frames_given_up,
        "recompiles_while_counting": variant.counting.recompiles,
        "compile_s": both.seconds,
    }


def written(where: Path, rows: dict[str, Any], settings: dict[str, Any]) -> None:
    """MODEL-SAMPLES as .json, .md and .png, each whole or not at all; -roofline.png where programs were counted."""
    write_json(where.with_name(f"{where.name}.json"), {"settings": settings, "variants": rows})
    write_text(where.with_name(f"{where.name}.md"), markdown(rows, settings))
    plots.draw(where.with_name(f"{where.name}.json"))


def shown(rows: dict[str, Any], settings: dict[str, Any]) -> None:
    """The times on the console, and what did not run."""
    table = Table("variant", "FULL ms", "ESTIMATE ms", "generation ms", "vs compiled full", title=settings["what"])
    for name, row in rows.items():
        cells = [f"{row[phase]['median_ms']:.1f}" if phase in row else "-" for phase in (FULL.name, ESTIMATE.name, "generation")]
        table.add_row(name, *cells, f"{row['speedup_vs_compiled_full']:.2f}x")
    console = Console()
    console.print(table)
    notes = [f"{name}: {'; '.join(row['notes'])}" for name, row in rows.items() if "notes" in row]
    for line in (*notes, *(f"{name}: not run. {why}" for name, why in settings["refused"].items())):
        console.print(line, markup=False, highlight=False)
