"""Checks, then times, on one CUDA device: `python -m benchmarks.gpu`; `--tiny` runs the same sections on the CPU with tiny shapes.

Every variant runs the same steps in full (`nfc` of `steps`, at equal gaps); all take turns in one process, a generation each, after a
warm-up. A step's time is the host clock's with a synchronization after each step; a program's alone, the copy's and the matrix product's
are CUDA events'. Medians with the 10th and 90th percentile; a ratio is a ratio of medians. The idle share is 1 - kernel time / wall time
of a generation with one synchronization, at its end: the kernels' (overlaps counted once) from torch.profiler in a generation of its own.
Bytes per second are those that Inductor counts for the kernels of ESTIMATE, over the program's time; the copy's are read plus written.
A workload begins with empty compiler caches; its variants share them.
The script watches its own clock: what no longer fits is a row that says so, what fails is a row with its error, and the record is
written after every section. Sections of an earlier run that are not run again are kept.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from benchmarks.gpu.workloads import LARGE, SMALL, Timed, built, calls_of
from benchmarks.latency.__main__ import record, schedule
from benchmarks.latency.compiling import FirstRuns, cold, estimate_arguments, first_runs, frames, times_ms
from benchmarks.latency.timing import Variant, figures
from benchmarks.latency.workloads import Calls, Workload
from rfc_fx.tools.summary_json import versions

TAYLOR, RFE = rfc.Taylor(order=1), rfc.RFE(order=1)


SKETCHED = rfc.Stored(estimator=rfc.RFE(order=1, sketch=16), differences=torch.int8)


ESTIMATORS: dict[str, rfc.Estimator] = {"Taylor m=1": TAYLOR, "RFE m=1": RFE, "RFE m=1, sketch 16, int8": SKETCHED}


GRAPHS = "CUDA graphs"


TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 5e-2)}
"""Relative norms: (uncompiled twin, compiled). Uncompiled programs run the twin's operations. Inductor reorders float32 reductions, and
leaves out roundings to bfloat16 (2^-8 each) between fused operations; estimates extrapolate either over the steps they skip."""


R = TypeVar("R")


MEASURING = 0.35
"""Share of a timing section's time that is kept for measuring; the rest is for compiling."""


class OutOfTime(BaseException):
    """A part took longer than it may; no Exception, so that no compiler handles it."""


class NeedsCUDAError(Exception):
    """A part that a CPU cannot run."""


@dataclass
class Bench:
    """Where and how everything runs, and what the device section measured."""

    device: torch.device
    tiny: bool
    backend: str
    regional: bool
    steps: int
    nfc: int
    rounds: int
    end: float
    """Of the whole run, on the host's clock."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def compiled(self, model: nn.Module, *, graphs: bool = False) -> Any:
        """torch.compile with this run's backend, on CUDA graphs where asked."""
        if not graphs:
            return torch.compile(model, fullgraph=True, backend=self.backend)
        if not self.cuda:
            raise NeedsCUDAError("needs CUDA")
        step = torch.compile(model, fullgraph=True, mode="reduce-overhead")

        def marked(**arguments: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return step(**arguments)

        return marked


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the main thread when this takes longer, again every few seconds where something swallows it; may be nested."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"out of time after {seconds:.0f} s")

    if seconds <= 0:
        raise OutOfTime("no time left")
    before = signal.signal(signal.SIGALRM, stop)
    begin = time.perf_counter()
    outer, again = signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, outer - (time.perf_counter() - begin)), again)


def left(until: float) -> float:
    """Seconds up to that moment."""
    return until - time.perf_counter()


def reason(error: BaseException) -> str:
    """Class and first lines of an error, without the machine's paths."""
    text = re.sub(r"(?:/[\w.+-]+)+/([\w.+-]+)", r"\1", str(error))
    said = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return f"{type(error).__name__}: {said[:400]}" if said else type(error).__name__


def tried(row: dict[str, Any], seconds: float, part: Callable[[], R], *, key: str = "error") -> R | None:
    """Run a part in that time and return its result; what it raises becomes an entry of its row instead."""
    try:
        with within(seconds):
            return part()
    except (OutOfTime, NeedsCUDAError) as error:
        row["skipped" if key == "error" else key] = str(error)
    except Exception as error:
        row[key] = reason(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None


def forget() -> None:
    """Drop what the last workload compiled and allocated."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_facts(bench: Bench, rows: dict[str, Any], until: float) -> None:
    """What the device is, and what it reaches in this run: a large copy and a large bf16 matrix product on random data."""
    rows |= {"device": "cpu", "threads": torch.get_num_threads()}
    if bench.cuda:
        about = torch.cuda.get_device_properties(bench.device)
        rows |= {
            "device": about.name,
            "memory_gib": about.total_memory / 2**30,
            "multiprocessors": about.multi_processor_count,
            "compute_capability": f"{about.major}.{about.minor}",
            "l2_mib": getattr(about, "L2_cache_size", 0) / 2**20,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    bench.facts = rows
    if (copy := tried(rows, left(until), lambda: copy_rate(bench.device, 2**22 if bench.tiny else 2**32))) is not None:
        rows["copy"] = copy
    if (product := tried(rows, left(until), lambda: product_rate(bench.device, 256 if bench.tiny else 8192))) is not None:
        rows["matmul_bf16"] = product


def copy_rate(device: torch.device, size: int) -> dict[str, float]:
    """A copy of so many bytes within the device's memory."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = figures(times_ms(lambda: target.copy_(source), device, 30))
    return {"bytes_read_and_written": 2 * size, "gb_per_s": 2 * size / taken["median_ms"] / 1e6, **taken}


def product_rate(device: torch.device, side: int) -> dict[str, float]:
    """A product of two square bfloat16 matrices of that side."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    taken = figures(times_ms(lambda: a @ b, device, 30))
    return {"side": side, "tflop_per_s": 2 * side**3 / taken["median_ms"] / 1e9, **taken}


@dataclass
class Outputs:
    """What a generation returned, and whether the outputs of its last three steps stayed what they were."""

    clones: list[Tensor]
    phases: list[str]
    kept: str = "valid"


def generation(call: Any, cache: Any, calls: Calls) -> Outputs:
    """Run one generation as a multistep sampler does, with the last three outputs in hand."""
    cache.reset()
    clones: list[Tensor] = []
    held: deque[tuple[int, Tensor]] = deque(maxlen=3)
    found = "valid"
    with torch.no_grad():
        for step, arguments in enumerate(calls):
            output = call(**arguments)[0]
            clones.append(output.clone())
            if found == "valid":
                held.append((step, output))
                found = overwritten(held, clones, step)
    return Outputs(clones, list(cache.stats.phases), found)


def overwritten(held: deque[tuple[int, Tensor]], clones: list[Tensor], step: int) -> str:
    """Which of the outputs in hand a later step changed, or that all are valid."""
    for place, output in held:
        try:
            same = torch.equal(output, clones[place])
        except RuntimeError as error:
            return f"step {step} invalidated the output of step {place}: {reason(error)}"
        if not same:
            return f"step {step} overwrote the output of step {place}"
    return "valid"


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative difference over the steps; inf where an output is no number."""
    apart = (float((x.float() - y.float()).norm() / y.float().norm()) for x, y in zip(a, b, strict=True))
    return max(math.inf if math.isnan(value) else value for value in apart)


def check(bench: Bench, row: dict[str, Any], workload: Workload, dtype: torch.dtype, name: str, until: float) -> None:
    """Eager twin, programs, compiled programs and compiled programs on CUDA graphs agree in their outputs and in their phases."""
    model = built(workload, bench.device, dtype)
    calls = calls_of(workload, model, 1, 12, bench.device, dtype)
    plan = rfc.RCS(tau=0.3) if dtype == torch.float32 else schedule(12, 6)  # near tau bfloat16's rounding may decide otherwise
    method = rfc.Method(estimator=ESTIMATORS[name], schedule=plan)
    cached = rfc_fx.transform(model, method, config=rfc_fx.Config(hoist=ESTIMATORS[name] is not RFE))
    expected = generation(cached, cached, calls)
    row |= {"phases": expected.phases, "kept_outputs": {"programs": expected.kept}, "relative_difference": {}, "passed": True}
    ways: dict[str, tuple[Callable[[], Any], Any, float]] = {
        "compiled": (lambda: bench.compiled(cached), cached, TOLERANCES[dtype][1]),
        GRAPHS: (lambda: bench.compiled(cached, graphs=True), cached, TOLERANCES[dtype][1]),
    }
    if ESTIMATORS[name] is not SKETCHED:  # the twin keeps its state as the paper does
        twin = rfc.eager.cached(model, method)
        ways = {"eager twin": (lambda: twin, twin, TOLERANCES[dtype][0])} | ways
    for way, (make, cache, tolerance) in ways.items():
        agree(bench, row, way, make, cache, expected, calls, tolerance, until)


def agree(
    bench: Bench,
    row: dict[str, Any],
    way: str,
    make: Callable[[], Any],
    cache: Any,
    expected: Outputs,
    calls: Calls,
    tolerance: float,
    until: float,
) -> None:
    """Two generations of one way to run against the uncompiled programs: CUDA graphs are recorded in the first."""

    def twice() -> None:
        call, worst = make(), 0.0
        for _ in range(2):
            got = generation(call, cache, calls)
            apart = distance(got.clones, expected.clones)
            worst = max(worst, apart)
            row["relative_difference"][way] = worst if math.isfinite(worst) else str(worst)
            row["kept_outputs"][way] = got.kept
            row["passed"] = row["passed"] and worst <= tolerance and got.phases == expected.phases

    outcome: dict[str, Any] = {}
    tried(outcome, left(until), twice)
    if outcome:
        row[way] = outcome
        row["passed"] = row["passed"] and "error" not in outcome


CASES: list[tuple[Workload, torch.dtype, str]] = [
    *((workload, torch.float32, "RFE m=1") for workload in SMALL),
    *((SMALL[0], torch.float32, name) for name in ESTIMATORS if name != "RFE m=1"),
    *((workload, torch.bfloat16, "RFE m=1") for workload in SMALL),
]
"""What is checked: every small workload with RFE in both types, and one hoisted, with its state in pools and in 8 bits."""


def checks(bench: Bench, rows: dict[str, Any], until: float) -> None:
    """All cases, as far as time goes."""
    for workload, dtype, name in CASES:
        row = rows.setdefault(f"{workload.name}, {str(dtype).removeprefix('torch.')}, {name}", {})
        tried(row, left(until), partial(check, bench, row, workload, dtype, name, until))
        forget()


@dataclass
class Entry:
    """A variant to be, and what is known of it."""

    name: str
    make: Callable[[], tuple[Any, Any]]
    """(what is called, what records the phases)."""
    row: dict[str, Any] = field(default_factory=dict)
    variant: Variant | None = None
    first: FirstRuns | None = None
    given: list[Tensor] = field(default_factory=list)
    """What ESTIMATE is called with, where it is timed alone."""


def entries(bench: Bench, model: nn.Module, calls: Calls, plan: rfc.RCS, *, beside: bool) -> list[Entry]:
    """Compiled full computation and estimators; beside them, where wanted, what runs eagerly and what runs on CUDA graphs."""
    timesteps = torch.stack([call["timestep"].flatten()[0] for call in calls])

    def method(name: str) -> rfc.Method:
        return rfc.Method(estimator=ESTIMATORS[name], schedule=plan)

    def full(*, graphs: bool) -> tuple[Any, Any]:
        return bench.compiled(model, graphs=graphs), None

    def hoisted(name: str, *, graphs: bool) -> tuple[Any, Any]:
        cached = rfc_fx.transform(model, method(name), config=rfc_fx.Config(hoist=True, regional=bench.regional))
        cached.prepare(timesteps)
        return bench.compiled(cached, graphs=graphs), cached

    def twin(name: str) -> tuple[Any, Any]:
        cached = rfc.eager.cached(model, method(name))
        return cached, cached

    made = [Entry("full, compiled", partial(full, graphs=False))]
    made += [Entry(f"{name}, hoisted, compiled", partial(hoisted, name, graphs=False)) for name in ESTIMATORS]
    if beside:
        names = ("Taylor m=1", "RFE m=1")
        made += [Entry("full, eager", lambda: (model, None))]
        made += [Entry(f"{name}, eager twin", partial(twin, name)) for name in names]
        made += [Entry(f"full, {GRAPHS}", partial(full, graphs=True))]
        made += [Entry(f"{name}, hoisted, {GRAPHS}", partial(hoisted, name, graphs=True)) for name in names]
    return made


def prepare(bench: Bench, entry: Entry, calls: Calls, leading: int) -> None:
    """Make and compile one variant."""
    start = time.perf_counter()
    call, cache = entry.make()
    if isinstance(cache, rfc_fx.CachedModel):
        with torch.no_grad():
            cache.trace(**calls[0])
            entry.row["transform_s"] = time.perf_counter() - start
            entry.given = estimate_arguments(cache, calls, leading)
    variant = Variant(entry.name, call, cache)
    entry.first = first_runs(variant, calls, leading, bench.device)
    entry.variant = variant
    entry.row["frames"] = entry.first.frames


def measure(bench: Bench, made: list[Entry], calls: Calls, until: float) -> int:
    """Rounds of generations in turns, as many as fit; return how many every variant has."""
    done, longest = 0, 0.0
    while done < bench.rounds and left(until) > longest:
        begin = time.perf_counter()
        for entry in made:
            if entry.variant is None:
                continue
            tried(entry.row, left(until), partial(counted_run, bench, entry, entry.variant, calls))
            if "error" in entry.row:
                entry.variant = None
        done += 1
        longest = time.perf_counter() - begin
    return done


def counted_run(bench: Bench, entry: Entry, variant: Variant, calls: Calls) -> None:
    """One generation that counts; its peak of memory over what was allocated when it began."""
    if not bench.cuda:
        variant.run(calls, bench.device, count=True)
        return
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    variant.run(calls, bench.device, count=True)
    peak = torch.cuda.max_memory_allocated(bench.device)
    entry.row["peak_mib"] = {"all": peak / 2**20, "above_models_and_states": (peak - before) / 2**20}


@torch.no_grad()
def at_once(variant: Variant, calls: Calls, device: torch.device) -> float:
    """Milliseconds of a generation that is synchronized at its end alone (and where a schedule reads its error)."""
    if variant.cache is not None:
        variant.cache.reset()
    start = time.perf_counter()
    for arguments in calls:
        variant.call(**arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def kernels_ms(variant: Variant, calls: Calls, device: torch.device) -> float:
    """Time in which a kernel, copy or fill of one generation was running, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        at_once(variant, calls, device)
    found = profile.profiler.kineto_results.events()  # as recorded: trees of them would take longer than the generation
    ran = [event for event in found if event.device_type().name == "CUDA" and not event.is_user_annotation()]
    return covered(sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in ran)) / 1e6


def covered(spans: list[tuple[int, int]]) -> int:
    """Length of the union of sorted intervals."""
    total, end = 0, 0
    for start, stop in spans:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def idle(bench: Bench, entry: Entry, calls: Calls) -> dict[str, Any]:
    """A generation at once, and the share of it in which nothing ran on the device."""
    assert entry.variant is not None
    wall = statistics.median(at_once(entry.variant, calls, bench.device) for _ in range(2))
    if not bench.cuda:
        return {"generation_at_once_ms": wall, "idle_share": "needs CUDA"}
    kernels = kernels_ms(entry.variant, calls, bench.device)
    return {"generation_at_once_ms": wall, "kernels_ms": kernels, "idle_share": 1 - kernels / wall}


@torch.no_grad()
def estimate_alone(bench: Bench, entry: Entry) -> dict[str, Any]:
    """ESTIMATE's program by itself: its time, and the bytes that Inductor counts over it."""
    assert entry.variant is not None
    assert entry.first is not None
    before = frames()
    program = bench.compiled(entry.variant.cache.programs["ESTIMATE"].run)
    taken: dict[str, Any] = figures(times_ms(lambda: program(*entry.given), bench.device, 5 if bench.tiny else 50))
    taken["compiled_anew"] = frames() - before
    if (counted := entry.first.estimate_bytes) is not None:
        taken |= {"inductor_bytes": counted, "gb_per_s": counted / taken["median_ms"] / 1e6}
        if "copy" in bench.facts:
            taken["share_of_copy"] = taken["gb_per_s"] / bench.facts["copy"]["gb_per_s"]
    return taken


def details(bench: Bench, made: list[Entry], calls: Calls, until: float) -> None:
    """Idle shares and ESTIMATE alone, where there is time."""
    for entry in made:
        if entry.variant is None:
            continue
        if entry.given and GRAPHS not in entry.name:
            note(entry.row, "estimate_program", left(until), partial(estimate_alone, bench, entry))
        note(entry.row, "idle", left(until), partial(idle, bench, entry, calls))


def note(row: dict[str, Any], key: str, seconds: float, part: Callable[[], dict[str, Any]]) -> None:
    """What a part found, or why it found nothing, as an entry of the row."""
    if (found := tried(row, seconds, part, key=key)) is not None:
        row[key] = found


def timed(bench: Bench, rows: dict[str, Any], until: float, *, name: str) -> None:
    """One workload: compile its variants, let them take turns, then look at each."""
    what: Timed = LARGE[name]
    workload = what.tiny if bench.tiny else what.workload
    begin = time.perf_counter()
    plan = schedule(bench.steps, bench.nfc)
    if (ready := tried(rows, left(until), partial(with_calls, bench, workload, what.samples))) is None:
        return
    model, calls = ready
    rows |= {"what": workload.what, "samples": what.samples, "dtype": "bfloat16", "weights_mib": weights(model) / 2**20}
    made = entries(bench, model, calls, plan, beside=what.beside)
    rows["variants"] = {entry.name: entry.row for entry in made}
    compiled_by = until - MEASURING * left(until)
    with cold() if bench.cuda else same():
        for entry in made:
            tried(entry.row, left(compiled_by), partial(prepare, bench, entry, calls, plan.warmup))
        rows["preparing_s"] = time.perf_counter() - begin
        before = frames()
        rows["rounds"] = measure(bench, made, calls, until - left(until) / 3)
        rows["graphs_compiled_while_counting"] = frames() - before
        tried(rows, left(until), partial(compare, bench, made))
        details(bench, made, calls, until)


def with_calls(bench: Bench, workload: Workload, samples: int) -> tuple[nn.Module, Calls]:
    """A workload's model in bfloat16, and the calls of a generation."""
    model = built(workload, bench.device, torch.bfloat16)
    return model, calls_of(workload, model, samples, bench.steps, bench.device, torch.bfloat16)


@contextmanager
def same() -> Iterator[None]:
    """Caches as they are."""
    yield


def compare(bench: Bench, made: list[Entry]) -> None:
    """Times into the rows, against compiled full computation where there is one."""
    ran = [entry.variant for entry in made if entry.variant is not None and entry.variant.generations_ms]
    if any(variant.name == "full, compiled" for variant in ran):
        times = record(ran, bench.steps, bench.nfc)
    else:
        times = {variant.name: {"generation": figures(variant.generations_ms)} for variant in ran}
    for entry in made:
        entry.row |= times.get(entry.name, {})


def weights(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


Section = Callable[[Bench, dict[str, Any], float], None]


SECTIONS: dict[str, tuple[Section, float, float]] = {
    "device": (device_facts, 1, 30),
    "checks": (checks, 20, 120),
    **{name: (partial(timed, name=name), 45, most) for name, most in zip(LARGE, (180, 270, 180, 200), strict=True)},
}
"""By name: what to run, and the seconds without which it is not begun and after which it ends. What a section leaves is for the next."""


def run_section(bench: Bench, name: str) -> dict[str, Any]:
    """One section in its time; it is recorded whatever becomes of it."""
    run, least, most = SECTIONS[name]
    if left(bench.end) < least:
        return {"status": "skipped", "reason": f"{max(0.0, left(bench.end)):.0f} s left, {least:.0f} s needed"}
    begin = time.perf_counter()
    rows: dict[str, Any] = {}
    status: dict[str, Any] = {"status": "done"}
    try:
        run(bench, rows, min(bench.end, begin + most))
    except Exception as error:
        status = {"status": "failed", "reason": reason(error)}
    forget()
    rest = {"device": bench.facts.get("device"), "copy_gb_per_s": bench.facts.get("copy", {}).get("gb_per_s"), "versions": versions()}
    return status | {"seconds": time.perf_counter() - begin, "measured_on": rest, "rows": rows}


def write(path: Path, written: dict[str, Any]) -> None:
    """Replace the record in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(written, indent=1) + "\n")
    os.replace(part, path)


def failed(section: dict[str, Any]) -> list[str]:
    """Names of the checks that ran and did not agree, or could not run."""
    return [name for name, row in section.get("rows", {}).items() if "error" in row or not row.get("passed", True)]


def shown(sections: dict[str, dict[str, Any]]) -> Table:
    """The times of all workloads on one screen."""
    table = Table("workload", "variant", "FULL ms", "ESTIMATE ms", "generation ms", "vs compiled full", "of the copy", "idle", box=None)
    for name, section in sections.items():
        for variant, row in section.get("rows", {}).get("variants", {}).items():
            if "generation" not in row:
                table.add_row(name, variant, str(row.get("error", row.get("skipped", "")))[:60])
                continue
            cells = [f"{row[phase]['median_ms']:.2f}" if phase in row else "-" for phase in ("FULL", "ESTIMATE", "generation")]
            alone, gaps = row.get("estimate_program"), row.get("idle")
            shares = [part.get(key) if isinstance(part, dict) else None for part, key in ((alone, "share_of_copy"), (gaps, "idle_share"))]
            speedup = f"{row['speedup_vs_compiled_full']:.2f}x" if "speedup_vs_compiled_full" in row else "-"
            table.add_row(name, variant, *cells, speedup, *(f"{s:.0%}" if isinstance(s, float) else "-" for s in shares))
    return table


def main(
    out: Annotated[Path | None, typer.Option(help="folder for gpu.json; with --tiny out/gpu if none is named")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="tiny shapes on the CPU")] = False,
    sections: Annotated[str, typer.Option(help=f"of {', '.join(SECTIONS)}; device always runs")] = ", ".join(SECTIONS),
    seconds: Annotated[float, typer.Option(help="wall time in which all of it has to end", min=1)] = 520,
    rounds: Annotated[int, typer.Option(help="generations of every variant", min=1)] = 5,
    backend: Annotated[str | None, typer.Option(help="of torch.compile; inductor, with --tiny eager")] = None,
    regional: Annotated[bool, typer.Option("--regional", help="transform with regional=True: deep models compile sooner")] = False,
) -> None:
    """Check and time the compiled programs on one CUDA device, and write what was found as JSON."""
    began = time.perf_counter()
    if not tiny and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device; --tiny runs the same sections on the CPU")
    names = dict.fromkeys(["device", *(name.strip() for name in sections.split(",") if name.strip())])
    if unknown := [name for name in names if name not in SECTIONS]:
        raise typer.BadParameter(f"unknown sections {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    bench = Bench(
        device=torch.device("cpu" if tiny else "cuda"),
        tiny=tiny,
        backend=backend or ("eager" if tiny else "inductor"),
        regional=regional,
        steps=10 if tiny else 50,
        nfc=4 if tiny else 14,
        rounds=min(rounds, 2) if tiny else rounds,
        end=began + seconds,
    )
    path = (out or Path("out/gpu" if tiny else "benchmarks/results/gpu")) / "gpu.json"
    earlier = json.loads(path.read_text())["sections"] if path.exists() else {}
    settings = {key: getattr(bench, key) for key in ("tiny", "backend", "regional", "steps", "nfc", "rounds")}
    done: dict[str, dict[str, Any]] = {}
    with torch._inductor.config.patch({"triton.cudagraph_or_error": True}):
        for name in (name for name in SECTIONS if name in names):
            done[name] = {"settings": settings, **run_section(bench, name)}
            write(path, {"protocol": __doc__, "seconds": time.perf_counter() - began, "sections": {**earlier, **done}})
            print(f"{time.perf_counter() - began:5.0f} s  {name}: {done[name]['status']} {done[name].get('reason', '')}", flush=True)
    Console(width=150).print(shown(done))
    if wrong := failed(done.get("checks", {})):
        print("checks failed:", wrong)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
