"""Tables of scale-out: what was measured on two processes, and what the alpha-beta model says of more GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.files import Record
from benchmarks.scaleout.model import FLUX, WAN, on

GPUS = (1, 2, 4, 8, 64)


def markdown(record: Record) -> str:
    """Programs of the digits model, alone and split: milliseconds, collectives, bytes that a rank sends."""
    ranks = record["settings"]["ranks"]
    lines = [
        f"| method | program | ms, one process | ms, {ranks} processes | collectives | bytes sent by a rank |",
        "|---|---|---|---|---|---|",
    ]
    for name, both in record["methods"].items():
        for phase, split in both["split"]["programs"].items():
            alone = both["alone"]["programs"][phase]
            lines.append(
                f"| {name} | {phase} | {alone['ms']:.1f} | {split['ms']:.1f} | {_counted(split['collectives'])} | {split['sent_bytes']:,} |"
            )
    return "\n".join(lines) + "\n"


def sentence(record: Record) -> str:
    """Whether the ranks decided as one process, how far pictures differ, and what became of the state."""
    found = list(record["methods"].values())
    same = all(both["alone"]["phases"] == both["split"]["phases"] for both in found)
    largest = max(both["largest_difference"] for both in found)
    share = found[0]["split"]["state_bytes"] / found[0]["alone"]["state_bytes"]
    decided = "Decisions are those of one process" if same else "Decisions differ from those of one process"
    return f"{decided}, pixels differ by at most {largest:.1g}, a process holds {share:.0%} of the state."


def _counted(collectives: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in collectives.items()) or "none"


def modelled() -> str:
    """The alpha-beta model for two transformers: seconds of 50 steps, 14 of them full, on 1 to 64 GPUs."""
    lines = [
        "| model | GPUs | sent by a GPU, FULL | FULL ms | ESTIMATE ms | sent, ESTIMATE | 50 steps, s: full / cached | over one uncached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for work in (FLUX, WAN):
        one = on(1, work)
        for gpus in GPUS:
            each = on(gpus, work)
            lines.append(
                f"| {work.name} | {gpus} | {_size(each.sent_full)} | {each.full * 1e3:,.0f} | {each.estimate * 1e3:.2f} | "
                f"{_size(each.sent_estimate)} | {each.uncached:.2f} / {each.cached:.2f} | {one.uncached / each.cached:.1f}x |"
            )
    return "\n".join(lines) + "\n"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count else "0"
