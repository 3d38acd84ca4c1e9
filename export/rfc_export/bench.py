"""Bench: engines beside the compiled CachedModel and the eager twin, over the same calls, in turns, in one process."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import rfc_fx
from rfc.eager.model import cached
from rfc.phase import ESTIMATE, FULL
from rfc_export.runtime import Engine
from rfc_export.verify import RecordedGeneration, Verdict, cached_like, parity_over
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.tools.variants import Timing, opened

READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "equal")
"""Calls by which the host looks at a tensor's values."""


PROTOCOL = (
    "ms, host clock, the device waited for after every step; medians over the counted generations (smallest and largest of whole "
    "generations), all variants in turns in one process after a warm-up; a generation is the recorded calls of the sampler, "
    "without the sampler's own arithmetic; host reads are of one generation more, uncompiled, and on a CPU include looks at what lies "
    "on the host already; state is all memory that one generation's state takes"
)


@dataclass(kw_only=True)
class Timed:
    """One way to run a generation, and what was measured of it."""

    name: str
    call: Callable[..., Any]
    model: Any
    """What keeps the record: an engine, a CachedModel or a twin."""
    state_bytes: int | None = None
    artefact_bytes: int | None = None
    verdict: Verdict | None = None
    steps_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By phase."""
    generations_ms: list[float] = field(default_factory=list)
    host_reads: int | None = None
    nfc: int = 0

    @torch.no_grad()
    def warm_up(self, generation: RecordedGeneration) -> None:
        """A whole generation and one in which all that can be is skipped: every program has run then."""
        generation.prepare(self.model)
        self._run(generation, count=False)
        if isinstance(self.model, StepModel):
            own = self.model.method
            self.model.method = own.exercised()
            self._run(generation, count=False)
            self.model.method = own

    @torch.no_grad()
    def run(self, generation: RecordedGeneration) -> None:
        """One counted generation."""
        self._run(generation, count=True)

    def _run(self, generation: RecordedGeneration, *, count: bool) -> None:
        times = []
        with self._opened(generation):
            for arguments in generation.calls:
                start = time.perf_counter()
                self.call(**arguments)
                _wait(arguments)
                times.append((time.perf_counter() - start) * 1e3)
        if count:
            phases = self.model.stats.phases
            for phase, taken in zip(phases, times, strict=True):
                self.steps_ms[phase].append(taken)
            self.generations_ms.append(sum(times))
            self.nfc = phases.count(FULL.name)

    def _opened(self, generation: RecordedGeneration) -> AbstractContextManager[Any]:
        """A generation of the model; where the calls do not tell one step from the next, it is told their timesteps."""
        model = self.model
        known = generation.repeated(model.timestep_argument) if isinstance(model, StepModel) else None
        return opened(model) if known is None else model.generation(known)

    @torch.no_grad()
    def count_reads(self, generation: RecordedGeneration) -> None:
        """One generation more, in which looks at tensors' values are counted."""
        with self._opened(generation), _Reads(_device(generation.calls[0])) as reads:
            for arguments in generation.calls:
                self.model(**arguments)
        self.host_reads = sum(reads.counts.values())

    @property
    def timing(self) -> Timing:
        """Of whole generations."""
        return Timing(statistics.median(self.generations_ms), min(self.generations_ms), max(self.generations_ms))

    def record(self) -> dict[str, Any]:
        """All of it as JSON, with units."""
        return {
            **{f"{phase.lower()}_ms": _median(self.steps_ms[phase]) for phase in dict.fromkeys((FULL.name, ESTIMATE.name, *self.steps_ms))},
            "generation_ms": dict(zip(("median", "min", "max"), self.timing, strict=True)),
            "generations_ms": self.generations_ms,
            "nfc": self.nfc,
            "host_reads": self.host_reads,
            "state_bytes": self.state_bytes,
            "artefact_bytes": self.artefact_bytes,
            "same_decisions": None if self.verdict is None else self.verdict.parity.phases == self.verdict.parity.expected_phases,
            "largest_error": None if self.verdict is None else self.verdict.parity.worst,
        }


class _Reads(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.counts = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and any(isinstance(one, Tensor) and one.device.type == self.device.type for one in args):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _device(arguments: dict[str, Any]) -> torch.device:
    return next(leaf.device for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor))


def _wait(arguments: dict[str, Any]) -> None:
    device = _device(arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _median(times: Sequence[float]) -> float | None:
    return statistics.median(times) if times else None


def engine_variant(name: str, engine: Engine, artefact_bytes: int) -> Timed:
    """An engine; where new state is written beside the old, both are counted."""
    loaded = engine.loaded
    held = loaded.spec.plan.state_bytes * (1 + loaded.returns_state)
    return Timed(name=name, call=engine, model=engine, state_bytes=held, artefact_bytes=artefact_bytes)


def model_variants(engine: Engine, model: nn.Module, inputs: dict[str, Any], *, compile: bool) -> Iterator[Timed]:
    """The CachedModel with the engine's method, compiled or not, and the eager twin where there is one for this model."""
    transformed = cached_like(engine, model, inputs)
    call: Any = torch.compile(transformed, fullgraph=True) if compile else transformed
    held = transformed.plan().state_bytes
    yield Timed(name="compiled" if compile else "transformed", call=call, model=transformed, state_bytes=held)
    try:
        twin: Any = cached(model, engine.method, engine.manifest.config.granularity)
    except ValueError:  # a model whose sites no hooks can find
        return
    yield Timed(name="eager twin", call=twin, model=twin)


def measure(
    variants: Sequence[Timed], generation: RecordedGeneration, rounds: int, report: Callable[[str], object], tick: Callable[[], object]
) -> None:
    """Warm all up, hold the engines against the CachedModel where there is one, count reads, then time them in turns."""
    for variant in variants:
        report(f"warming up {variant.name}")
        variant.warm_up(generation)
        tick()
    transformed = next((variant for variant in variants if isinstance(variant.model, rfc_fx.CachedModel)), None)
    for variant in variants:
        report(f"comparing {variant.name}")
        if transformed is not None and isinstance(variant.model, Engine):
            variant.verdict = parity_over(variant.model, transformed.model, generation)
        variant.count_reads(generation)
        tick()
    for number in range(rounds):
        for variant in variants:
            report(f"round {number + 1}: {variant.name}")
            variant.run(generation)
            tick()
