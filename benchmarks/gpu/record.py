"""The record of a run, and its times on one screen."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from rfc.phase import ESTIMATE, FULL


def failed(section: dict[str, Any]) -> list[str]:
    """Names of the checks that ran and did not agree, or could not run."""
    return [name for name, row in section.get("rows", {}).items() if "error" in row or not row.get("passed", True)]


def shown(sections: dict[str, dict[str, Any]]) -> Table:
    """The times of all workloads on one screen."""
    table = Table("workload", "variant", "FULL ms", "ESTIMATE ms", "generation ms", "vs compiled full", "of the copy", "idle", box=None)
    for name, section in sections.items():
        for variant, row in section.get("rows", {}).get("variants", {}).items():
            if "generation" not in row:
                table.add_row(name, variant, str(row.get("error", row.get("skipped", "")))[:60])
                continue
            cells = [f"{row[phase]['median_ms']:.2f}" if phase in row else "-" for phase in (FULL.name, ESTIMATE.name, "generation")]
            alone, gaps = row.get("estimate_program"), row.get("idle")
            shares = [part.get(key) if isinstance(part, dict) else None for part, key in ((alone, "share_of_copy"), (gaps, "idle_share"))]
            speedup = f"{row['speedup_vs_compiled_full']:.2f}x" if "speedup_vs_compiled_full" in row else "-"
            table.add_row(name, variant, *cells, speedup, *(f"{s:.0%}" if isinstance(s, float) else "-" for s in shares))
    return table
