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
    total = record["settings"]["requests"]
    shares = [next(each for each in record["memory"] if each["requests"] >= total * share) for share in (0.2, 0.5, 1.0)]
    replicas, fronts = ([str(each[name]) for each in shares] for name in ("replica_mib", "front_mib"))
    return (
        f"Memory after {', '.join(str(each['requests']) for each in shares)} requests of one run: the replicas held "
        f"{', '.join(replicas)} MiB together, the front {', '.join(fronts)} MiB."
    )
