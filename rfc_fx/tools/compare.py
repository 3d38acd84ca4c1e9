"""Compare: the same samples by every method, as eager twin and as compiled graph, timed in turns."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import inf, log10
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

import rfc_fx
from rfc.eager.model import CachedEager, cached
from rfc.generation import Generation
from rfc.method import CachingMethod, Method, placement
from rfc.schedules.base import Schedule
from rfc.schedules.change import AnchorChange, ProbeChange, StepChange
from rfc.schedules.fixed import Phased, Placed
from rfc.schedules.rcs import RCS
from rfc.schedules.verified import Verified
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Choice, Decision, Dispatch
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.runtime.summary import pattern
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.sites.granularity import chosen_granularity
from rfc_fx.tools.load import Source, Tick

FULL = "full"
"""Name of the row without caching."""


DATA_RANGE = 2.0
"""Pixels are in [-1, 1]."""


Side = Literal["eager", "graph", "engine"]
"""eager: the model itself, or the twin. graph: what torch.compile gets, the model or what `transform` made of it. engine: exported."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to compare: `steps` per generation; in each of `rounds` rounds every seed is a generation of every variant."""

    steps: int = 50
    rounds: int = 1
    compile: bool = True
    granularity: Choice | None = None
    """Of the methods that leave it open; None: module."""
    state_dtype: torch.dtype | None = None
    """Of the differences, on the graph side; the eager twin keeps the model's."""
    state_budget: int | None = None
    dispatch: Dispatch = "host"
    decision: Decision = "batch"
    """The eager twin always decides for the batch."""
    hoist: bool = False
    """What needs no latent is computed ahead of the steps."""
    regional: bool = True
    """Repeated blocks of the transformed model are compiled once; full computation is compiled as torch.compile does it."""


class Timing(NamedTuple):
    """Milliseconds per generation over the counted generations."""

    median_ms: float
    min_ms: float
    max_ms: float


@dataclass(kw_only=True)
class Variant:
    """One way to draw the samples, and what was seen of it."""

    method: str
    side: Side
    call: Any
    """What stands where the transformer stood."""
    cache: StepModel | CachedEager | None = None
    warmup_steps: int = 1
    warmup_s: float = 0.0
    """Seconds of the first, short generation: capture and compilation, where the variant needs them."""
    times_ms: list[float] = field(default_factory=list)
    images: dict[int, Tensor] = field(default_factory=dict)
    """Samples by seed, one per group."""
    records: dict[int, dict[str, Generation]] = field(default_factory=dict)
    """What each seed's generation did, by context."""

    @property
    def timing(self) -> Timing:
        return Timing(statistics.median(self.times_ms), min(self.times_ms), max(self.times_ms))

    @property
    def granularity(self) -> str | None:
        """What one estimate stood for, as far as a generation has shown it; None for a model without a cache."""
        if isinstance(self.cache, CachedEager):
            return self.cache.granularity
        return self.cache.compiled.found.granularity if isinstance(self.cache, CachedModel) else None

    @property
    def samples(self) -> Float[Tensor, "N C H W"]:
        """All samples, groups outermost."""
        return torch.stack(list(self.images.values()), dim=1).flatten(0, 1)

    def warm_up(self, source: Source, device: torch.device) -> None:
        """A short generation in which every program runs."""
        start = time.perf_counter()
        with force_all_phases(self.cache) if isinstance(self.cache, StepModel) else nullcontext():
            source.draw(self.call, source.seeds[0], self.warmup_steps, lambda: None)
        _wait(device)
        self.warmup_s = time.perf_counter() - start

    def run(self, source: Source, seed: int, steps: int, tick: Tick, device: torch.device) -> None:
        """One counted generation: a sample of every group."""
        if self.cache is not None:
            self.cache.reset()
        _wait(device)
        start = time.perf_counter()
        images = source.draw(self.call, seed, steps, tick)
        _wait(device)
        self.times_ms.append((time.perf_counter() - start) * 1e3)
        self.images[seed] = images
        if self.cache is not None:
            self.records[seed] = dict(self.cache.contexts)


CHANGES = (StepChange, AnchorChange, ProbeChange)


def skipping(method: CachingMethod) -> CachingMethod:
    """The method with a schedule that skips every step after its warm-up, in every way it has; runs on the same programs."""
    schedule = skipping_schedule(method.schedule)
    return method if schedule is method.schedule else with_schedule(method, schedule)


@contextmanager
def force_all_phases(cached: StepModel) -> Iterator[None]:
    """The cached model with `skipping` of its method, for as long as that takes."""
    method = cached.method
    cached.method = skipping(method)
    try:
        yield
    finally:
        cached.method = method


def with_schedule(method: CachingMethod, schedule: Schedule) -> Method:
    """The method with another schedule."""
    return Method(estimator=method.estimator, schedule=schedule, **placement(method)._asdict())


def skipping_schedule(schedule: Schedule) -> Schedule:
    """The schedule with settings that make as few steps full as can be; itself where it skips anyway."""
    if isinstance(schedule, RCS):
        return replace(schedule, tau=inf)
    if isinstance(schedule, CHANGES):
        return replace(schedule, threshold=inf, steps=None)
    if isinstance(schedule, Verified):
        return replace(schedule, base=inf, decay=1.0, min_drafts=1, enhanced=0)
    if isinstance(schedule, Phased):
        return replace(schedule, steps=schedule.phases)
    return schedule


def misplaced(method: CachingMethod, steps: int) -> str | None:
    """What to say where full steps were placed for generations of another length."""
    schedule = method.schedule
    if not isinstance(schedule, Placed) or schedule.of == steps:
        return None
    return f"its full steps were placed for generations of {schedule.of} steps, these have {steps}"


def threshold_of(schedule: Schedule) -> float | None:
    """What the error of a schedule that watches is held against."""
    return schedule.tau if isinstance(schedule, RCS) else schedule.threshold if isinstance(schedule, CHANGES) else None


def steps_to_warm_up(method: CachingMethod, most: int) -> int:
    """Steps in which `skipping(method)` has come to every phase it has, and to two steps after the warm-up; at most `most`."""
    schedule, generation = skipping_schedule(method.schedule), Generation()
    numbers, least = schedule.numbers(), min(schedule.warmup + 2, most)
    for step in range(1, most + 1):
        generation.decide(schedule, numbers, 0.0, None)
        if step >= least and {*generation.phases} >= {*schedule.phases}:
            return step
    return least


def granularities(methods: Mapping[str, CachingMethod], wanted: Choice | None) -> dict[str, Choice]:
    """What each method works on: its own granularity, and `wanted` where it leaves that open.

    ValueError where the methods leave nothing open, and one has another than the wanted.
    """
    is_open = {name: placement(method).granularity is None for name, method in methods.items()}
    given = {name: wanted if is_open[name] or not any(is_open.values()) else None for name in methods}
    return {name: chosen_granularity(given[name], method) for name, method in methods.items()}


def variants(source: Source, methods: Mapping[str, CachingMethod], settings: Settings) -> list[Variant]:
    """Full computation and every method, on the eager side and on the graph's."""
    plain = source.model
    graph: Callable[[nn.Module], Any] = (lambda model: torch.compile(model, fullgraph=True)) if settings.compile else (lambda model: model)
    made = [Variant(method=FULL, side="eager", call=plain)]
    if settings.compile:
        made.append(Variant(method=FULL, side="graph", call=graph(plain)))
    sizes = granularities(methods, settings.granularity)
    for name, method in methods.items():
        short = steps_to_warm_up(method, settings.steps)
        twin = _twin(plain, name, method, sizes[name])
        transformed = rfc_fx.transform(
            plain,
            method=method,
            granularity=sizes[name],
            state_dtype=settings.state_dtype,
            state_budget=settings.state_budget,
            dispatch=settings.dispatch,
            decision=settings.decision,
            hoist=settings.hoist,
            regional=settings.regional and settings.dispatch == "host",
        )
        made.append(Variant(method=name, side="eager", call=twin, cache=twin, warmup_steps=short))
        made.append(Variant(method=name, side="graph", call=graph(transformed), cache=transformed, warmup_steps=short))
    return made


def _twin(model: nn.Module, name: str, method: CachingMethod, size: Choice) -> CachedEager:
    """The eager twin of the same granularity; of modules, where it cannot have that one and the method leaves it open."""
    sizes = ["module"] if size == "auto" else [size] if placement(method).granularity is not None else [size, "module"]
    for place, one in enumerate(sizes):
        try:
            return cached(model, method, one)
        except ValueError as error:
            if place == len(sizes) - 1:
                raise RFCError(f"{name}: the eager twin cannot be made: {error}") from error
    raise AssertionError("there is a granularity to try")


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
    def records(self) -> list[Generation]:
        """The generation of each seed, in its first context; none for full computation."""
        return [next(iter(contexts.values())) for contexts in self.best.records.values()]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, full computation first; of an engine one row alone."""

    source: Source
    methods: Mapping[str, CachingMethod]
    settings: Settings
    rows: list[Row]
    graphs_compiled_while_counting: int
    """0: nothing was compiled inside a timed run."""

    def nfc(self, row: Row) -> float:
        """Full computations of a generation, mean over seeds and contexts."""
        counts = [record.nfc for contexts in row.best.records.values() for record in contexts.values()]
        return statistics.fmean(counts) if counts else self.settings.steps

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
        """What a reader must know to read the numbers right."""
        return list(_notes(self))


def compare(source: Source, methods: Mapping[str, CachingMethod], settings: Settings, report: Reporter) -> Comparison:
    """Warm every variant up once, then draw every seed with all of them in turns, in one process."""
    made = variants(source, methods, settings)
    device = next(source.model.parameters()).device
    with torch.no_grad(), warnings.catch_warnings():
        for said_in_notes in (NothingSkippedWarning, StepsMismatchWarning):
            warnings.simplefilter("ignore", said_in_notes)
        for variant in made:
            report.warming(variant)
            variant.warm_up(source, device)
        before = _graphs_compiled()
        for round in range(settings.rounds):
            for seed in source.seeds:
                for variant in made:
                    report.running(variant, round, seed)
                    variant.run(source, seed, settings.steps, report.step, device)
        compiled = _graphs_compiled() - before
    rows = [_row(name, made, source) for name in (FULL, *methods)]
    return Comparison(source=source, methods=methods, settings=settings, rows=rows, graphs_compiled_while_counting=compiled)


def _row(name: str, made: list[Variant], source: Source) -> Row:
    reference = made[0].samples
    sides = {variant.side: variant for variant in made if variant.method == name}
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _graphs_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _notes(of: Comparison) -> Iterator[str]:
    steps, generations = of.settings.steps, of.settings.rounds * len(of.source.seeds)
    for row in of.rows[1:]:
        method = of.methods[row.method]
        if not method.schedule.can_skip(steps):
            yield f"{row.method}: nothing can be skipped in {steps} steps with {method.schedule}: the times are those of full computation"
        elif of.nfc(row) == steps:
            yield f"{row.method}: all {steps} steps were full although {method.schedule} could skip; raise its threshold{_option(method)}"
        if (note := misplaced(method, steps)) is not None:
            yield f"{row.method}: {note}"
        if row.graph is not None and of.settings.decision == "batch" and pattern_of(row.eager) != pattern_of(row.graph):
            yield f"{row.method}: the twin took other decisions than the graph: {pattern_of(row.eager)} against {pattern_of(row.graph)}"
        if any(len(contexts) > 1 for contexts in row.best.records.values()):
            counts = [record.nfc for contexts in row.best.records.values() for record in contexts.values()]
            yield (
                f"{row.method}: one schedule per context ({len(counts) // len(row.best.records)} of them), full steps {min(counts)} to "
                f"{max(counts)}, mean {of.nfc(row):.1f}; the pictures show the first"
            )
    if of.settings.decision != "batch":
        yield f"the eager twin decides for the batch; only the graph side uses decision {of.settings.decision}"
    for row in of.rows[1:]:
        twin, own = row.eager.granularity, row.best.granularity
        if twin is not None and twin != own:
            yield f"{row.method}: the eager twin works on granularity {twin}; only the graph side uses {own}"
    if of.settings.state_dtype is not None:
        yield f"the eager twin keeps its state in the model's type; only the graph side keeps differences in {of.settings.state_dtype}"
    if generations < 3:
        yield f"{generations} counted generation{'s' if generations > 1 else ''}: too few for a median; use more --seeds or --rounds"
    if not of.settings.compile:
        yield "nothing was compiled (--no-compile): the graph side runs node by node and says nothing about speed"
    if of.graphs_compiled_while_counting:
        yield f"{of.graphs_compiled_while_counting} graphs were compiled inside counted runs: the slowest times include compilation"


def _option(method: CachingMethod) -> str:
    """The option of the command line that is meant."""
    schedule = method.schedule
    return " (--tau)" if isinstance(schedule, RCS) else " (--threshold)" if isinstance(schedule, CHANGES) else ""


def pattern_of(variant: Variant) -> str:
    """The phases of every seed and context."""
    parts = (f"seed {seed} {name} {pattern(r)}" for seed, contexts in variant.records.items() for name, r in contexts.items())
    return ", ".join(parts)
