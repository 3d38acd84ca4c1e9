"""What is measured of one way to run a generation: times by phase, what torch.compile did for it, what the host read, memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dynamo import utils as dynamo
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from benchmarks.latency.workloads import Calls
from rfc.phase import FULL
from rfc_fx.ir.torch_versions import isolated_recompiles
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.tools.variants import force_all_phases, opened, steps_to_warm_up

READS = ("tolist", "item", "__bool__", "__float__", "__int__", "__index__", "equal", "cpu", "numpy")
"""Calls of torch that wait for a value of a tensor."""


WARMUP_STEPS = 8
"""Enough for both phases of most schedules."""


@dataclass(frozen=True)
class CompileCounts:
    """What torch.compile did, as a difference of its counters."""

    graphs: int = 0
    graph_breaks: int = 0
    """Times that tracing stopped at a break."""
    recompiles: int = 0
    """Frames compiled again because a guard failed."""
    frames_given_up: int = 0
    """Frames that were left to the interpreter."""
    seconds: float = 0.0

    @staticmethod
    def now() -> CompileCounts:
        """The counters of this process."""
        frames = dynamo.get_compilation_metrics()
        return CompileCounts(
            dynamo.counters["stats"]["unique_graphs"],
            sum(dynamo.counters["graph_break"].values()),
            sum(frame.recompile_reason is not None for frame in frames),
            sum(frame.fail_reason is not None for frame in frames),
            sum(frame.entire_frame_compile_time_s or 0.0 for frame in frames),
        )

    def __add__(self, other: CompileCounts) -> CompileCounts:
        return CompileCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: CompileCounts) -> CompileCounts:
        return CompileCounts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


def keep_all_compilation_metrics() -> None:
    """Dynamo keeps the metrics of its last 64 frames; a rival alone may compile more."""
    if len(dynamo.get_compilation_metrics()) < 64:
        dynamo.set_compilation_metrics_limit(1 << 16)


def compiled_alone(function: Any, backend: str = "inductor") -> Any:
    """`torch.compile` that shares no compiled code with other calls of it: no other copy of a model counts as a recompile."""
    compile: Any = torch.compile  # the annotations of torch 2.13 leave isolate_recompiles out
    return compile(function, backend=backend, **isolated_recompiles())


class Reads(TorchFunctionMode):
    """Counts what the host reads of a device's tensors while the mode is on, by the name of the call.

    On a CPU, where all tensors lie together, those count that were made of arguments (`give`) or weights: on a device they would lie there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()
        self.far: Any = WeakTensorKeyDictionary()

    def give(self, arguments: dict[str, Any]) -> None:
        """These tensors are the device's."""
        for tensor in arguments.values():
            self.far[tensor] = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        far = any(self._is_far(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        name = getattr(func, "__name__", "")
        if far and name in READS:
            self.counts[name] += 1
        result = func(*args, **(kwargs or {}))
        if far:
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.far[leaf] = None
        return result

    def _is_far(self, tensor: Tensor) -> bool:
        return tensor.device.type != "cpu" or isinstance(tensor, nn.Parameter) or (tensor in self.far)


@dataclass
class TimedVariant:
    """One way to run a generation, and its times."""

    name: str
    call: Any
    cache: Any = None
    """What records the phases; None for the model without caching."""
    steps_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    generations_ms: list[float] = field(default_factory=list)
    first_s: float = 0.0
    """Seconds of the warm-up generation, compilation included."""
    warming: CompileCounts = CompileCounts()
    """What was compiled before counting."""
    counting: CompileCounts = CompileCounts()
    """What was compiled in the counted generations."""
    peak_bytes: int | None = None
    """Most device memory a counted generation held beyond what was there before it; None on a CPU, where torch counts none."""
    reads: dict[str, int] | None = None
    """Host reads of one generation by call (`audit`)."""
    notes: list[str] = field(default_factory=list)

    @property
    def compiles(self) -> bool:
        """Whether torch.compile wraps what is called."""
        return isinstance(self.call, torch._dynamo.eval_frame.OptimizedModule) or bool(getattr(self.cache, "compiles", False))

    @torch.no_grad()
    def run(self, calls: Iterable[dict[str, Tensor]], device: torch.device, *, count: bool) -> None:
        """One generation; every step timed for itself."""
        with opened(self.cache):
            self._run(calls, device, count=count)

    def _run(self, calls: Iterable[dict[str, Tensor]], device: torch.device, *, count: bool) -> None:
        times: list[tuple[str, float]] = []
        compiled, peak = CompileCounts.now(), _peak_of(device)
        begin = time.perf_counter()
        for arguments in calls:
            start = time.perf_counter()
            self.call(**arguments)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append((self.cache.stats.phases[-1] if self.cache is not None else FULL.name, (time.perf_counter() - start) * 1e3))
        elapsed_s = time.perf_counter() - begin
        spent = CompileCounts.now() - compiled
        if not count:
            self.first_s += elapsed_s
            self.warming += spent
            return
        self.counting += spent
        self.peak_bytes = max((bytes for bytes in (self.peak_bytes, peak()) if bytes is not None), default=None)
        self.generations_ms.append(sum(elapsed for _, elapsed in times))
        for phase, elapsed in times:
            self.steps_ms[phase].append(elapsed)

    def warm_up(self, calls: Calls, device: torch.device) -> None:
        """A short generation; what is made anew for every generation of a rival needs a whole one and the begin of the next.

        Where a schedule comes to some of its phases later, another short one in which it comes to all.
        """
        if getattr(self.cache, "rival", False):
            self.run(calls, device, count=False)
        self.run(calls[:WARMUP_STEPS], device, count=False)
        if isinstance(self.cache, StepModel) and {*self.cache.method.schedule.branches} > {*self.cache.stats.phases}:
            short = calls[: steps_to_warm_up(self.cache.method, len(calls))]
            with force_all_phases(self.cache):
                self.run(short, device, count=False)

    @torch.no_grad()
    def audit(self, calls: Calls) -> None:
        """One generation without torch.compile: what the host reads of tensors, and for a rival which steps really were full."""
        plain = getattr(self.cache, "uncompiled", self.cache)
        if plain is None:
            return
        with opened(self.cache), Reads() as reads:
            for arguments in calls:
                reads.give(arguments)
                plain(**arguments)
        self.reads = dict(reads.counts)


def _peak_of(device: torch.device) -> Callable[[], int | None]:
    """Begin to watch the memory of a device; the function returned says how much more it held at most."""
    if device.type != "cuda":
        return lambda: None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    return lambda: torch.cuda.max_memory_allocated(device) - before


def figures(values: list[float]) -> dict[str, float]:
    """Median and spread in milliseconds."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9  # never beyond what was seen
    return {"median_ms": statistics.median(values), "p10_ms": tenths[0], "p90_ms": tenths[-1], "samples": len(values)}
