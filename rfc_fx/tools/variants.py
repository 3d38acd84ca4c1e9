"""Variants: the ways in which a comparison draws the samples, full computation and every method as eager twin and as graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

import rfc_fx
from rfc.eager.model import CachedEager, cached
from rfc.method import Method
from rfc.record import Record
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.sites.granularity import granularities_for
from rfc_fx.tools.sources import Source, Tick

FULL = "full"
"""Name of the row without caching."""

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
    """The callable in the place of the transformer."""
    cache: StepModel | CachedEager | None = None
    warmup_steps: int = 1
    warmup_s: float = 0.0
    """Seconds of the first, short generation: capture and compilation, where the variant needs them."""
    times_ms: list[float] = field(default_factory=list)
    images: dict[int, Tensor] = field(default_factory=dict)
    """Samples by seed, one per group."""
    records: dict[int, dict[str, Record]] = field(default_factory=dict)
    """Record of each seed's generation, by context."""

    @property
    def timing(self) -> Timing:
        return Timing(statistics.median(self.times_ms), min(self.times_ms), max(self.times_ms))

    @property
    def granularity(self) -> str | None:
        """Extent of one estimate, as far as a generation has shown it; None for a model without a cache."""
        if isinstance(self.cache, CachedEager):
            return self.cache.granularity
        return self.cache.compiled.analysis.granularity if isinstance(self.cache, CachedModel) else None

    @property
    def samples(self) -> Float[Tensor, "N C H W"]:
        """All samples, groups outermost."""
        return torch.stack(list(self.images.values()), dim=1).flatten(0, 1)

    def warm_up(self, source: Source, device: torch.device) -> None:
        """A short generation in which every program runs."""
        start = time.perf_counter()
        with force_all_phases(self.cache) if isinstance(self.cache, StepModel) else nullcontext(), opened(self.cache):
            source.draw(self.call, source.seeds[0], self.warmup_steps, lambda: None)
        wait(device)
        self.warmup_s = time.perf_counter() - start

    def run(self, source: Source, seed: int, steps: int, tick: Tick, device: torch.device) -> None:
        """One counted generation: a sample of every group."""
        with opened(self.cache):
            wait(device)
            start = time.perf_counter()
            images = source.draw(self.call, seed, steps, tick)
            wait(device)
            self.times_ms.append((time.perf_counter() - start) * 1e3)
        self.images[seed] = images
        if self.cache is not None:
            self.records[seed] = dict(self.cache.contexts)


@contextmanager
def opened(cache: Any) -> Iterator[None]:
    """A generation of a cached model or engine, or of whatever else has a cache that can be reset; nothing without a cache."""
    if isinstance(cache, StepModel):
        with cache.generation():
            yield
        return
    if cache is not None:
        cache.reset()
    yield


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
    schedule, generation = method.schedule.exercised(), Record()
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
    every = [Variant(method=FULL, side="eager", call=plain)]
    if settings.compile:
        every.append(Variant(method=FULL, side="graph", call=graph(plain)))
    config_of = configs(methods, settings.config)
    for name, method in methods.items():
        short = steps_to_warm_up(method, settings.steps)
        twin = _twin(plain, name, method, config_of[name])
        transformed = rfc_fx.transform(plain, method, config=config_of[name])
        every.append(Variant(method=name, side="eager", call=twin, cache=twin, warmup_steps=short))
        every.append(Variant(method=name, side="graph", call=graph(transformed), cache=transformed, warmup_steps=short))
    return every


def _twin(model: nn.Module, name: str, method: Method, config: Config) -> CachedEager:
    """The eager twin of the same granularity; of modules, where it cannot have that one and the method leaves it open."""
    own = method.granularity
    candidates = [own] if own is not None else list(dict.fromkeys((config.granularity or method.default_granularity or "module", "module")))
    for granularity in candidates:
        try:
            return cached(model, method, granularity)
        except ValueError as error:
            if granularity == candidates[-1]:
                raise RFCError(f"{name}: the eager twin cannot be made: {error}") from error
    raise AssertionError("there is a granularity to try")


def wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
