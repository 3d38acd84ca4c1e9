"""Bench: whole calls of a pipeline, eager, compiled and accelerated, in turns, in one process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch

from rfc.method import Method
from rfc_fx.ir.config import Config
from rfc_fx.pipelines.accelerated import SpeedupWarning, transformers_of
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.tools.load import one_line
from rfc_fx.tools.pipeline.accelerated import accelerated, method_of, records, relative, state_bytes
from rfc_fx.tools.pipeline.draw import relative_error
from rfc_fx.tools.pipeline.peak_memory import begin_peak, peak_bytes
from rfc_fx.tools.pipeline.source import Drawn, PipelineSource, refusing
from rfc_fx.tools.variants import wait

PROTOCOL = (
    "ms of a whole call of the pipeline, text encoders and decoders included (one call a prompt, one for all classes), host clock, the "
    "device waited for; every variant in turn in each round, a seed a round, in one process, after a whole generation of each that is not "
    "counted; medians with the smallest and the largest; a speed-up is a ratio of medians; error ||x - x_full||_2 / ||x_full||_2 of the "
    "final latents (of the samples where the pipeline does not tell them) to the eager call of the same seed; peak: on CUDA allocated, on "
    "the CPU resident memory of the process during the counted calls, weights included"
)


class Spread(NamedTuple):
    """Median, smallest and largest of some values."""

    median: float
    least: float
    most: float


def spread(values: list[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(median(values), min(values), max(values))


@dataclass(kw_only=True)
class PipelineVariant:
    """One way to call the pipeline, and what was measured of it."""

    name: str
    make: Callable[[], Any]
    """Called when it is its turn to warm up."""
    pipe: Any = None
    failure: str | None = None
    """Why it does not run; None where it does."""
    first_s: float = 0.0
    times_ms: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    full_steps: float | None = None
    steps: int = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of state that its denoisers hold."""
        return 0 if self.pipe is None else state_bytes(self.pipe)


@dataclass(kw_only=True)
class PipelineBench:
    """What was timed, eager first."""

    source: PipelineSource
    variants: list[PipelineVariant]
    method: Method
    rounds: int
    asked: float | None
    """The speed-up that was asked for."""
    graphs_compiled_while_counting: int

    def speedup(self, variant: PipelineVariant, over: str) -> float | None:
        """The median time of `over` divided by that of the variant; None where one of them did not run."""
        other = next((each for each in self.variants if each.name == over and each.times_ms), None)
        return None if other is None or not variant.times_ms else median(other.times_ms) / median(variant.times_ms)

    def notes(self) -> list[str]:
        """Caveats, one line each."""
        return list(_notes(self))


def bench_pipeline(
    source: PipelineSource,
    method: Method | None,
    *,
    nfc: int | float | None,
    speedup: float | None,
    rounds: int,
    compile: bool,
    config: Config | None,
    tick: Callable[[], object],
    describe: Callable[[str], object],
) -> PipelineBench:
    """Time eager, compiled (unless `compile` is False) and accelerated calls; LoadError for arguments that the pipeline refuses."""
    base, device = source.pipe, next(source.model.parameters()).device
    made = {
        "eager": lambda: base,
        "compiled": lambda: compiled(relative(base)),
        "accelerated": lambda: accelerated(base, method, nfc=nfc, speedup=speedup, compile=compile, config=config),
    }
    variants = [PipelineVariant(name=name, make=make) for name, make in made.items() if compile or name != "compiled"]
    with warnings.catch_warnings():
        for said_in_notes in (NothingSkippedWarning, StepsMismatchWarning, SpeedupWarning):
            warnings.simplefilter("ignore", said_in_notes)
        for variant in variants:
            describe(f"warming up {variant.name}")
            _warm_up(source, variant, device, tick)
        before = _graphs_compiled()
        for round in range(rounds):
            reference: list[Drawn] = []
            for variant in variants:
                describe(f"round {round + 1}, {variant.name}")
                if variant.failure is not None:
                    for _ in range(len(source.call.batches) * source.call.steps):
                        tick()
                    continue
                drawn = _counted(source, variant, source.seeds[0] + round, device, tick)
                reference = reference or drawn
                variant.errors += [relative_error(each, full) for each, full in zip(drawn, reference, strict=True)]
        after = _graphs_compiled()
    chosen = method_of(variants[-1].pipe)
    return PipelineBench(
        source=source, variants=variants, method=chosen, rounds=rounds, asked=speedup, graphs_compiled_while_counting=after - before
    )


def compiled(pipe: Any) -> Any:
    """The pipeline with every denoiser compiled as it is."""
    for name, model in transformers_of(pipe).items():
        setattr(pipe, name, torch.compile(model))
    return pipe


def _warm_up(source: PipelineSource, variant: PipelineVariant, device: torch.device, tick: Callable[[], object]) -> None:
    """A whole generation; only the plain pipeline, compiled, may fail without ending the command."""
    start = time.perf_counter()
    try:
        with refusing(source) if variant.name == "eager" else torch.no_grad():
            variant.pipe = variant.make()
            for _ in source.generations(variant.pipe, source.seeds[0], source.call.steps, tick):
                pass
    except Exception as error:
        if variant.name != "compiled":
            raise
        variant.pipe, variant.failure = None, f"{type(error).__name__}: {one_line(error, width=160)}"
    wait(device)
    variant.first_s = time.perf_counter() - start


def _counted(source: PipelineSource, variant: PipelineVariant, seed: int, device: torch.device, tick: Callable[[], object]) -> list[Drawn]:
    watched = begin_peak(device)
    calls = source.generations(variant.pipe, seed, source.call.steps, tick)
    drawn: list[Drawn] = []
    counts: list[float] = []
    while True:
        wait(device)
        start = time.perf_counter()
        if (each := next(calls, None)) is None:
            break
        wait(device)
        variant.times_ms.append((time.perf_counter() - start) * 1e3)
        drawn.append(each)
        counts += [record.nfc for record in records(variant.pipe).values()]
    if watched:
        variant.peak_bytes = max(variant.peak_bytes or 0, peak_bytes(device) or 0) or None
    variant.steps = drawn[0].steps
    variant.full_steps = sum(counts) / len(counts) if counts else float(variant.steps)
    return drawn


def _graphs_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _notes(of: PipelineBench) -> Iterator[str]:
    for variant in of.variants:
        if variant.failure is not None:
            yield f"{variant.name}: the plain pipeline does not run compiled: {variant.failure}"
    last = of.variants[-1]
    if last.full_steps == last.steps:
        yield f"accelerated: all {last.steps} steps were full with {of.method}"
    if of.asked is not None:
        plain = "compiled" if len(of.variants) == 3 and of.variants[1].failure is None else "eager"
        reached = of.speedup(last, plain) or 0.0
        yield (
            f"accelerated: asked to be {of.asked:g} times as fast as all steps in full; with {last.full_steps:.4g} of {last.steps} "
            f"steps full a whole call is {reached:.2f} times as fast as {plain}"
        )
    if of.rounds < 3:
        yield f"{of.rounds} counted round{'s' if of.rounds > 1 else ''}: too few for a median; use more --rounds"
    if len(of.variants) == 2:
        yield "nothing was compiled (--no-compile): the accelerated pipeline runs node by node and says nothing about speed"
    if of.graphs_compiled_while_counting:
        yield f"{of.graphs_compiled_while_counting} graphs were compiled inside counted calls: the slowest times include compilation"
