"""Tables: the rows of a latency record as Markdown. Columns that only newer records have appear where a row has a value for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rfc.phase import ESTIMATE, FULL

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "FULL ms": lambda row: f"{row[FULL.name]['median_ms']:.1f}",
    "ESTIMATE ms": lambda row: f"{row[ESTIMATE.name]['median_ms']:.1f}",
    "of compiled full": lambda row: f"{row['estimate_share_of_compiled_full']:.1%}",
    "generation ms (p10-p90)": lambda row: "{median_ms:.0f} ({p10_ms:.0f}-{p90_ms:.0f})".format(**row["generation"]),
    "vs compiled full": lambda row: f"{row['speedup_vs_compiled_full']:.2f}x",
    "of the bound": lambda row: f"{row['share_of_bound']:.0%}",
    "state MiB": lambda row: f"{row['state_bytes'] / 2**20:.1f}",
}
"""Columns of every table."""


MORE: dict[str, Callable[[dict[str, Any]], str]] = {
    "NFC": lambda row: str(len(row["full_steps"])),
    "graphs": lambda row: str(row["graphs"]),
    "breaks": lambda row: str(row["graph_breaks"]),
    "recompiles (counted)": lambda row: f"{row['recompiles']} ({row['recompiles_while_counting']})",
    "host reads": lambda row: str(sum(row["host_reads"].values())),
    "compile s": lambda row: f"{row['compile_s']:.0f}",
    "peak MiB": lambda row: f"{row['peak_bytes'] / 2**20:.1f}",
}
"""Columns of tables that have a value for them."""


def _cell(row: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
    try:
        return text(row)
    except KeyError:
        return "-"


def markdown(rows: dict[str, Any], settings: dict[str, Any]) -> str:
    """The rows as a table; under it what there is to say of single rows."""
    samples = "1 sample" if settings["samples"] == 1 else f"{settings['samples']} samples"
    refused = settings.get("refused", {})
    listed = {**rows, **{name: {} for name in refused}}
    more = {title: text for title, text in MORE.items() if any(_cell(row, text) != "-" for row in rows.values())}
    columns = COLUMNS | more
    lines = [
        f"{settings['what']}; {samples} {settings.get('guidance', 'with guidance')}, {settings['nfc']} of {settings['steps']} steps full, "
        f"{settings['device']} ({settings['threads']} threads), {settings['dtype']}, torch {settings['versions']['torch']}, "
        f"{settings['rounds']} interleaved generations each",
        "",
        f"| variant | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {' | '.join([name, *(_cell(row, text) for text in columns.values())])} |" for name, row in listed.items()),
    ]
    said = [f"* {name}: {'; '.join(row['notes'])}" for name, row in rows.items() if "notes" in row]
    said += [f"* {name}: not run. {why}" for name, why in refused.items()]
    return "\n".join([*lines, *([""] if said else []), *said]) + "\n"
