"""Summary: what was computed, what was skipped and what it held in memory."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rfc.method import Method
from rfc.phase import PhaseName, is_partial, phase_named
from rfc.record import Record
from rfc_fx.ir.plan import Plan


def as_text(renderable: Any, width: int = 140) -> str:
    """Render a rich object without colours."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(renderable)
    return stream.getvalue()


def mib(count: float) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.2f} MiB"


def mark(phase: PhaseName) -> str:
    """The character that a phase is drawn as."""
    return phase_named(phase).mark


def pattern(generation: Record) -> str:
    """A generation's phases as one character a step: # full, . estimated, v verified, - reused, a digit for some tokens."""
    return "".join(map(mark, generation.phases))


def legend(phases: Sequence[PhaseName]) -> str:
    """What the characters of a pattern mean."""
    words = [f"{mark(phase)} {phase_named(phase).word}" for phase in phases if not is_partial(phase)]
    digits = [mark(phase) for phase in phases if is_partial(phase)]
    return ", ".join([*words[:1], *([f"{digits[0]} to {digits[-1]} some tokens"] if digits else []), *words[1:]])


@dataclass(frozen=True)
class Summary:
    """What a generation computed, skipped and held; printable, and a rich renderable."""

    model: str
    method: Method
    plan: Plan
    contexts: Mapping[str, Record]
    held_bytes: int

    def table(self) -> Table:
        """One row per context."""
        table = Table(title=f"{self.model}: {self.method}", caption=self._caption(), title_justify="left", caption_justify="left")
        drawn = f"schedule ({legend(self.method.schedule.branches)})"
        for column in ("context", "steps", "NFC", "skipped", "FLOPs saved", "eps P50", "eps P95", drawn):
            table.add_column(column, justify="left" if column.startswith(("context", "schedule")) else "right")
        for name, generation in self.contexts.items():
            steps, nfc = generation.step, generation.nfc
            eps = torch.tensor([value for value in generation.eps if value is not None])
            saved = 1 - sum(map(self.plan.share, generation.phases)) / steps if steps else 0.0
            quantiles = [f"{float(eps.quantile(q)):.4f}" for q in (0.5, 0.95)] if len(eps) else ["-", "-"]
            table.add_row(name, str(steps), str(nfc), str(steps - nfc), f"{saved:.1%}", *quantiles, pattern(generation))
        return table

    def _caption(self) -> str:
        costs = ", ".join(
            f"{phase} {self.plan.share(phase):.2%}" for phase in self.method.schedule.branches if phase not in ("FULL", "ESTIMATE")
        )
        return (
            f"{self.plan.count}; state {mib(self.plan.state_bytes)} per context, {mib(self.held_bytes)} held; "
            f"an estimated step costs {self.plan.estimate_share:.2%} of a full step's FLOPs"
            + (f", {costs}" if costs else "")
            + self._restarts()
        )

    def _restarts(self) -> str:
        """How often steps began anew, by reason; nothing where none did."""
        counts = Counter(reason for generation in self.contexts.values() for reason in generation.restarts)
        return "".join(f"; {count} x a step began anew: {reason}" for reason, count in counts.items())

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return as_text(self.table())
