"""Draw: the samples of a pipeline by full computation, and by every method with all of its denoisers accelerated."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from rfc.method import Method
from rfc_fx.ir.config import Config
from rfc_fx.pipelines.accelerated import SpeedupWarning
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.tools.compare import Comparison, Row, psnr
from rfc_fx.tools.pipeline.accelerated import accelerated, method_of, records, state_bytes
from rfc_fx.tools.pipeline.source import Drawn, PipelineSource, refusing
from rfc_fx.tools.variants import FULL, Settings, Variant, wait


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to draw with a method: None is the default of `accelerate`."""

    methods: Mapping[str, Method | None]
    nfc: int | float | None
    speedup: float | None
    rounds: int
    compile: bool
    config: Config | None


@dataclass(kw_only=True)
class Drawing:
    """All samples, and what was seen of every row; full computation first."""

    source: PipelineSource
    request: Request
    comparison: Comparison
    drawn: dict[str, list[list[Drawn]]]
    """By method, then by seed, then by batch of the call."""
    errors: dict[str, list[float]]
    """||x - x_full||_2 / ||x_full||_2 of final latents (of samples where the pipeline does not tell them), by method, one a generation."""

    def notes(self) -> list[str]:
        """Caveats, one line each."""
        return list(_notes(self))


@dataclass(kw_only=True)
class _Drawer:
    """Draws row after row."""

    source: PipelineSource
    request: Request
    tick: Callable[[], object]
    describe: Callable[[str], object]
    device: torch.device
    variants: list[Variant] = field(default_factory=list)
    drawn: dict[str, list[list[Drawn]]] = field(default_factory=dict)

    def row(self, name: str, pipe: Any) -> Variant:
        self.describe(name)
        variant = Variant(method=name, side="graph", call=pipe)
        rows: list[list[Drawn]] = []
        for round in range(self.request.rounds):
            for seed in self.source.seeds:
                batches = list(self._timed(variant, pipe, seed))
                if round == 0:
                    rows.append(batches)
                    variant.images[seed] = torch.cat([drawn.media.samples for drawn in batches])
        variant.call = None  # the last to hold its state
        self.drawn[name] = rows
        self.variants.append(variant)
        return variant

    def measure(self, name: str, pipe: Any) -> None:
        """A generation that is not counted, in which the steps are measured."""
        self.describe(f"{name}, measuring its steps")
        for _ in self.source.generations(pipe, self.source.seeds[0], self.source.call.steps, self.tick):
            pass

    def _timed(self, variant: Variant, pipe: Any, seed: int) -> Iterator[Drawn]:
        generations = self.source.generations(pipe, seed, self.source.call.steps, self.tick)
        while True:
            wait(self.device)
            start = time.perf_counter()
            if (drawn := next(generations, None)) is None:
                return
            wait(self.device)
            variant.times_ms.append((time.perf_counter() - start) * 1e3)
            if recorded := records(pipe):
                variant.records[len(variant.records)] = recorded
            yield drawn


def draw(source: PipelineSource, request: Request, tick: Callable[[], object], describe: Callable[[str], object]) -> Drawing:
    """Draw every seed by full computation and by every method.

    LoadError for arguments that the pipeline refuses. The first generation of a method holds its capture and compilation.
    """
    device = next(source.model.parameters()).device
    drawer = _Drawer(source=source, request=request, tick=tick, describe=describe, device=device)
    with refusing(source):
        full = drawer.row(FULL, source.pipe)
    rows = [Row(method=FULL, eager=full, graph=None, psnr_db=float("inf"), psnr_eager_db=float("inf"), state_bytes=0)]
    methods: dict[str, Method] = {}
    with warnings.catch_warnings():
        for said_in_notes in (NothingSkippedWarning, StepsMismatchWarning, SpeedupWarning):
            warnings.simplefilter("ignore", said_in_notes)
        for name, method in request.methods.items():
            pipe = accelerated(
                source.pipe, method, nfc=request.nfc, speedup=request.speedup, compile=request.compile, config=request.config
            )
            if request.speedup is not None:
                drawer.measure(name, pipe)
            variant = drawer.row(name, pipe)
            quality = psnr(variant.samples, full.samples)
            held = state_bytes(pipe)
            methods[name] = method_of(pipe)
            rows.append(Row(method=name, eager=variant, graph=None, psnr_db=quality, psnr_eager_db=quality, state_bytes=held))
    settings = Settings(
        steps=drawer.drawn[FULL][0][0].steps, rounds=request.rounds, compile=request.compile, config=request.config or Config()
    )
    comparison = Comparison(source=source, methods=methods, settings=settings, rows=rows, graphs_compiled_while_counting=0)
    errors = {name: list(_errors(drawn, drawer.drawn[FULL])) for name, drawn in drawer.drawn.items()}
    return Drawing(source=source, request=request, comparison=comparison, drawn=drawer.drawn, errors=errors)


def _errors(rows: list[list[Drawn]], full: list[list[Drawn]]) -> Iterator[float]:
    for mine, reference in zip(rows, full, strict=True):
        for each, other in zip(mine, reference, strict=True):
            yield relative_error(each, other)


def relative_error(drawn: Drawn, full: Drawn) -> float:
    """||x - x_full||_2 / ||x_full||_2 of the final latents, or of the samples."""
    x, reference = drawn.latents, full.latents
    if x is None or reference is None or x.shape != reference.shape:
        x, reference = drawn.media.samples, full.media.samples
    return float((x.double() - reference.double()).norm() / reference.double().norm().clamp_min(1e-30))


def seconds(variant: Variant) -> tuple[float, float | None]:
    """Seconds of the first generation, and the median of the later ones; None where there is one alone."""
    first, *later = [ms / 1e3 for ms in variant.times_ms]
    return first, median(later) if later else None


def _notes(of: Drawing) -> Iterator[str]:
    comparison = of.comparison
    steps = comparison.settings.steps
    for row in comparison.rows[1:]:
        schedule = comparison.methods[row.method].schedule
        taken = {len(record.phases) for contexts in row.eager.records.values() for record in contexts.values()}
        if schedule.is_bound and not schedule.can_skip(steps):
            yield f"{row.method}: nothing can be skipped in {steps} steps with {schedule}"
        elif comparison.nfc(row) == steps:
            hint = "take more --steps, or another method with --dispatch cond" if schedule.threshold is None else "raise its threshold"
            yield f"{row.method}: nothing was skipped in {steps} step{'s' if steps > 1 else ''} with {schedule}; {hint}"
        if schedule.is_placed and schedule.num_steps is not None and taken and schedule.num_steps not in taken:
            yield f"{row.method}: its full steps were placed for {schedule.num_steps} calls, a generation has {', '.join(map(str, taken))}"
    yield "times hold text encoders and decoders; of the first generation also capture and compilation; rfc-fx bench times in turns"
