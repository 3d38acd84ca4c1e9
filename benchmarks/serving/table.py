"""The table of a server under load."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.files import Record


def markdown(records: Sequence[Record]) -> str:
    """A row for each record."""
    first = ("model, steps", "requests, clients", "begun over", "replicas, killed", "seconds", "lost", "mixed up", "p50 s", "p95 s")
    columns = (*first, "drawn again", "load before")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for record in records:
        of = record["settings"]
        figures = (
            f"{of['model']}, {of['steps']}",
            f"{of['requests']}, {of['clients']}",
            f"{of['seconds']:.0f} s" if of["seconds"] else "at once",
            f"{of['replicas']}, {of['kills']}",
            f"{record['seconds']:.0f}",
            record["lost"],
            f"{record['mixed_up']} of {record['compared']}",
            *(record[name] for name in ("p50_s", "p95_s", "retries")),
            of["load_before"],
        )
        lines.append(f"| {' | '.join(map(str, figures))} |")
    return "\n".join(lines) + "\n"


def memory(records: Sequence[Record]) -> str:
    """What the processes held in the longest run that looked, as a sentence; empty where none did."""
    looked = [record for record in records if record["memory"]]
    if not looked:
        return ""
    record = max(looked, key=lambda each: int(each["settings"]["requests"]))
    first, *_, last = (each for each in record["memory"] if each["requests"] >= record["settings"]["requests"] // 5)
    return (
        f"After {first['requests']} of {last['requests']} requests the replicas held {first['replica_mib']} MiB together and the front "
        f"{first['front_mib']}, at the end {last['replica_mib']} and {last['front_mib']}."
    )
