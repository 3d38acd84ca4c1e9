"""Compare: the same samples by every method, as eager twin and as compiled graph, timed in turns."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, log10
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.method import Method
from rfc.record import Record
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.runtime.summary import pattern
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.tools.sources import Source
from rfc_fx.tools.variants import FULL, Settings, Variant, misplaced, variants

DATA_RANGE = 2.0
"""Pixels are in [-1, 1]."""


class Reporter(Protocol):
    """Hears of the progress of a comparison."""

    def warming(self, variant: Variant) -> None: ...
    def running(self, variant: Variant, round: int, seed: int) -> None: ...
    def step(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of the comparison."""

    method: str
    eager: Variant
    """Of an engine, which has no other side, the engine."""
    graph: Variant | None
    """None: full computation without torch.compile, which is the eager model."""
    psnr_db: float
    """Against the samples of the eager full computation; of the graph side where there is one. nan: nothing was drawn to compare with."""
    psnr_eager_db: float
    state_bytes: int

    @property
    def best(self) -> Variant:
        """The graph side, where there is one."""
        return self.graph or self.eager

    @property
    def records(self) -> list[Record]:
        """The generation of each seed, in its first context; none for full computation."""
        return [next(iter(contexts.values())) for contexts in self.best.records.values()]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, full computation first; of an engine one row alone."""

    source: Source
    methods: Mapping[str, Method]
    settings: Settings
    rows: list[Row]
    graphs_compiled_while_counting: int
    """0: nothing was compiled inside a timed run."""

    def nfc(self, row: Row) -> float:
        """Full computations of a generation, mean over seeds and contexts."""
        counts = [record.nfc for contexts in row.best.records.values() for record in contexts.values()]
        return statistics.fmean(counts) if counts else self.settings.steps

    def nfc_text(self, row: Row) -> str:
        """The same with at most one decimal."""
        return f"{round(self.nfc(row), 1):g}"

    def phases(self, row: Row) -> list[str]:
        """For each seed, one character a step: # full, . estimated."""
        return [pattern(record) for record in row.records] or ["#" * self.settings.steps] * len(self.source.seeds)

    def speedups(self, row: Row) -> dict[str, float]:
        """Ratios of medians, named by both sides."""
        full, now = self.rows[0], row.best.timing.median_ms
        if row is full:
            return {} if row.graph is None else {"compiled_full_vs_eager_full": row.eager.timing.median_ms / now}
        ratios = {"vs_eager_twin": row.eager.timing.median_ms / now, "vs_eager_full": full.eager.timing.median_ms / now}
        if full.graph is not None:
            ratios["vs_compiled_full"] = full.graph.timing.median_ms / now
        side = "compiled" if self.settings.compile else "transformed"
        return {f"{side}_cached_{name}": value for name, value in ratios.items()}

    def notes(self) -> list[str]:
        """Caveats of the numbers, one line each."""
        return list(_notes(self))


def compare(source: Source, methods: Mapping[str, Method], settings: Settings, report: Reporter) -> Comparison:
    """Warm every variant up once, then draw every seed with all of them in turns, in one process."""
    every = variants(source, methods, settings)
    device = next(source.model.parameters()).device
    with torch.no_grad(), warnings.catch_warnings():
        for said_in_notes in (NothingSkippedWarning, StepsMismatchWarning):
            warnings.simplefilter("ignore", said_in_notes)
        for variant in every:
            report.warming(variant)
            variant.warm_up(source, device)
        before = _graphs_compiled()
        for round in range(settings.rounds):
            for seed in source.seeds:
                for variant in every:
                    report.running(variant, round, seed)
                    variant.run(source, seed, settings.steps, report.step, device)
        compiled = _graphs_compiled() - before
    rows = [_row(name, every, source) for name in (FULL, *methods)]
    return Comparison(source=source, methods=methods, settings=settings, rows=rows, graphs_compiled_while_counting=compiled)


def _row(name: str, variants: list[Variant], source: Source) -> Row:
    reference = variants[0].samples
    sides = {variant.side: variant for variant in variants if variant.method == name}
    eager, graph = sides["eager"], sides.get("graph")
    at_twin = psnr(eager.samples, reference)
    at_graph = at_twin if graph is None else psnr(graph.samples, reference)
    state = 0 if graph is None or not isinstance(graph.cache, StepModel) else graph.cache.summary().held_bytes
    # the reference is the eager full computation itself: inf; what compilation changes of it stands beside
    shown, beside = (at_twin, at_graph) if name == FULL else (at_graph, at_twin)
    return Row(method=name, eager=eager, graph=graph, psnr_db=shown, psnr_eager_db=beside, state_bytes=state)


def psnr(x: Float[Tensor, "N C H W"], reference: Float[Tensor, "N C H W"]) -> float:
    """10 log10(range^2 / mean squared error) in dB over all pixels of all samples, clamped to [-1, 1]; inf when equal."""
    error = float((x.double().clamp(-1, 1) - reference.double().clamp(-1, 1)).square().mean())
    return inf if error == 0 else 10 * log10(DATA_RANGE**2 / error)


def _graphs_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _notes(of: Comparison) -> Iterator[str]:
    steps, generations = of.settings.steps, of.settings.rounds * len(of.source.seeds)
    for row in of.rows[1:]:
        method = of.methods[row.method]
        if not method.schedule.can_skip(steps):
            yield f"{row.method}: nothing can be skipped in {steps} steps with {method.schedule}: the times are those of full computation"
        elif of.nfc(row) == steps:
            yield f"{row.method}: all {steps} steps were full although {method.schedule} could skip; raise its threshold"
        if (note := misplaced(method, steps)) is not None:
            yield f"{row.method}: {note}"
        if row.graph is not None and of.settings.config.decision == "batch" and pattern_of(row.eager) != pattern_of(row.graph):
            yield f"{row.method}: the twin took other decisions than the graph: {pattern_of(row.eager)} against {pattern_of(row.graph)}"
        if any(len(contexts) > 1 for contexts in row.best.records.values()):
            counts = [record.nfc for contexts in row.best.records.values() for record in contexts.values()]
            yield (
                f"{row.method}: one schedule per context ({len(counts) // len(row.best.records)} of them), full steps {min(counts)} to "
                f"{max(counts)}, mean {of.nfc(row):.1f}; the pictures show the first"
            )
    if of.settings.config.decision != "batch":
        yield f"the eager twin decides for the batch; only the graph side uses decision {of.settings.config.decision}"
    for row in of.rows[1:]:
        twin, own = row.eager.granularity, row.best.granularity
        if twin is not None and twin != own:
            yield f"{row.method}: the eager twin works on granularity {twin}; only the graph side uses {own}"
    if (dtype := of.settings.config.state_dtype) is not None:
        yield f"the eager twin keeps its state in the model's type; only the graph side keeps differences in {dtype}"
    if generations < 3:
        yield f"{generations} counted generation{'s' if generations > 1 else ''}: too few for a median; use more --seeds or --rounds"
    if not of.settings.compile:
        yield "nothing was compiled (--no-compile): the graph side runs node by node and says nothing about speed"
    if of.graphs_compiled_while_counting:
        yield f"{of.graphs_compiled_while_counting} graphs were compiled inside counted runs: the slowest times include compilation"


def pattern_of(variant: Variant) -> str:
    """The phases of every seed and context."""
    parts = (f"seed {seed} {name} {pattern(r)}" for seed, contexts in variant.records.items() for name, r in contexts.items())
    return ", ".join(parts)
