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
from rfc.method import Method
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.runtime.summary import pattern
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.sites.granularity import granularities_for
from rfc_fx.tools.sources import Source, Tick

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
    config: Config = Config(regional=True)
    """Of the graph side; full computation is compiled as torch.compile does it. The eager twin takes the granularity alone: it decides for
    the batch and keeps its state in the model's type."""


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


@contextmanager
def force_all_phases(cached: StepModel) -> Iterator[None]:
    """Temporarily use a schedule that reaches every phase in a few steps."""
    method = cached.method
    cached.method = method.exercised()
    try:
        yield
    finally:
        cached.method = method


def misplaced(method: Method, steps: int) -> str | None:
    """The note where full steps were placed for generations of another length."""
    schedule = method.schedule
    if not schedule.is_placed or schedule.num_steps == steps:
        return None
    return f"its full steps were placed for generations of {schedule.num_steps} steps, these have {steps}"


def steps_to_warm_up(method: Method, most: int) -> int:
    """Steps in which the exercised method reaches every phase, and two steps after the warm-up; at most `most`."""
    schedule, generation = method.schedule.exercised(), Generation()
    numbers, least = schedule.numbers(), min(schedule.warmup + 2, most)
    for step in range(1, most + 1):
        generation.decide(schedule, numbers, 0.0, None)
        if step >= least and {*generation.phases} >= {*schedule.branches}:
            return step
    return least


def configs(methods: Mapping[str, Method], config: Config) -> dict[str, Config]:
    """The configuration of each method: a method with a granularity of its own keeps it beside methods that leave it open.

    ValueError where every method has its own granularity, and one has another than the configuration's.
    """
    is_open = {name: method.granularity is None for name, method in methods.items()}
    own = replace(config, granularity=None)
    by_method = {name: config if is_open[name] or not any(is_open.values()) else own for name in methods}
    for name, method in methods.items():
        granularities_for(by_method[name], method)
    return by_method


def variants(source: Source, methods: Mapping[str, Method], settings: Settings) -> list[Variant]:
    """Full computation and every method, on the eager side and on the graph's."""
    plain = source.model
    graph: Callable[[nn.Module], Any] = (lambda model: torch.compile(model, fullgraph=True)) if settings.compile else (lambda model: model)
    made = [Variant(method=FULL, side="eager", call=plain)]
    if settings.compile:
        made.append(Variant(method=FULL, side="graph", call=graph(plain)))
    config_of = configs(methods, settings.config)
    for name, method in methods.items():
        short = steps_to_warm_up(method, settings.steps)
        twin = _twin(plain, name, method, config_of[name])
        transformed = rfc_fx.transform(plain, method, config=config_of[name])
        made.append(Variant(method=name, side="eager", call=twin, cache=twin, warmup_steps=short))
        made.append(Variant(method=name, side="graph", call=graph(transformed), cache=transformed, warmup_steps=short))
    return made


def _twin(model: nn.Module, name: str, method: Method, config: Config) -> CachedEager:
    """The eager twin of the same granularity; of modules, where it cannot have that one and the method leaves it open."""
    own = method.granularity
    candidates = [own] if own is not None else list(dict.fromkeys((config.granularity or "module", "module")))
    for granularity in candidates:
        try:
            return cached(model, method, granularity)
        except ValueError as error:
            if granularity == candidates[-1]:
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
    methods: Mapping[str, Method]
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


def compare(source: Source, methods: Mapping[str, Method], settings: Settings, report: Reporter) -> Comparison:
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
