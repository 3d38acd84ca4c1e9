"""The table of a soak."""

from __future__ import annotations

from benchmarks.files import Record


def markdown(record: Record) -> str:
    """The record as a table."""
    settled, last = record["settled"], record["last"]
    failed = sum(count for name, count in record["outcomes"].items() if name != "none")
    rows = [
        ("generations", f"{record['settings']['generations']}, {failed} of them ended by an injected failure"),
        ("reference requests, bit-identical", f"{record['references'] - len(record['wrong'])} of {record['references']}"),
        (f"memory after {settled['generations']:.0f} and at the end", f"{settled['rss_mib']:.0f} and {last['rss_mib']:.0f} MiB"),
        ("tensors", f"{settled['tensors']:.0f} and {last['tensors']:.0f}"),
        ("threads", f"{settled['threads']:.0f} and {last['threads']:.0f}"),
        ("open files", f"{settled['files']:.0f} and {last['files']:.0f}"),
        ("minutes", f"{record['seconds'] / 60:.0f}"),
    ]
    return "| what | found |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)
