"""Checks: CUDA graphs, programs and eager twin agree in outputs and phases."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import rfc
import rfc.eager
import rfc_fx
from benchmarks.gpu.bench import Bench, forget, left, reason, tried
from benchmarks.gpu.estimators import ESTIMATORS, RFE
from benchmarks.gpu.graphs import graph_counts, since
from benchmarks.gpu.plan import GRAPHS
from benchmarks.gpu.workloads import TINY_DIT, TINY_FLUX, TINY_WAN, built
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.workloads import Calls, Workload, calls_of
from rfc_fx.tools.variants import opened

TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 5e-2)}
"""Relative norms: (uncompiled twin, compiled). Uncompiled programs run the twin's operations. Inductor reorders float32 reductions, and
leaves out roundings to bfloat16 (2^-8 each) between fused operations; estimates extrapolate either over the steps they skip."""


@dataclass
class Outputs:
    """What a generation returned, and whether the outputs of its last three steps stayed what they were."""

    clones: list[Tensor]
    phases: list[str]
    validity: str = "valid"


def generation(call: Any, cache: Any, calls: Calls) -> Outputs:
    """Run one generation as a multistep sampler does, with the last three outputs in hand."""
    clones: list[Tensor] = []
    held: deque[tuple[int, Tensor]] = deque(maxlen=3)
    validity = "valid"
    with torch.no_grad(), opened(cache):
        for step, arguments in enumerate(calls):
            output = call(**arguments)[0]
            clones.append(output.clone())
            if validity == "valid":
                held.append((step, output))
                validity = overwritten(held, clones, step)
    return Outputs(clones, list(cache.stats.phases), validity)


def overwritten(held: deque[tuple[int, Tensor]], clones: list[Tensor], step: int) -> str:
    """Which of the outputs in hand a later step changed, or that all are valid."""
    for earlier, output in held:
        try:
            same = torch.equal(output, clones[earlier])
        except RuntimeError as error:
            return f"step {step} invalidated the output of step {earlier}: {reason(error)}"
        if not same:
            return f"step {step} overwrote the output of step {earlier}"
    return "valid"


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative difference over the steps; inf where an output is no number."""
    apart = (float((x.float() - y.float()).norm() / y.float().norm()) for x, y in zip(a, b, strict=True))
    return max(math.inf if math.isnan(value) else value for value in apart)


def check(bench: Bench, row: dict[str, Any], case: Case, until: float) -> None:
    """Eager twin, programs, compiled programs and compiled programs on CUDA graphs agree in their outputs and in their phases."""
    model = built(case.workload, bench.device, case.dtype)
    calls = calls_of(case.workload, model, 1, 12, bench.device, case.dtype)
    plan = rfc.RCS(tau=0.3) if case.dtype == torch.float32 else equal_gaps(12, 6)  # near tau bfloat16's rounding may decide otherwise
    method = rfc.Method(estimator=ESTIMATORS[case.estimator], schedule=plan)
    cached = rfc_fx.transform(model, method, config=rfc_fx.Config(hoist=case.hoists))
    expected = generation(cached, cached, calls)
    row |= {"phases": expected.phases, "kept_outputs": {"programs": expected.validity}, "relative_difference": {}, "passed": True}
    ways: dict[str, tuple[Callable[[], Any], Any, float]] = {
        GRAPHS: (lambda: bench.compiled(cached, graphs=True), cached, TOLERANCES[case.dtype][1])
    }
    if not bench.cuda:
        ways["compiled"] = (lambda: bench.compiled(cached), cached, TOLERANCES[case.dtype][1])
    if case.has_twin:
        twin = rfc.eager.cached(model, method)
        ways["eager twin"] = (lambda: twin, twin, TOLERANCES[case.dtype][0])
    before = graph_counts(bench.device)
    for way, (make, cache, tolerance) in ways.items():
        agree(bench, row, way, make, cache, expected, calls, tolerance, until)
    row["graphs"] = since(before, graph_counts(bench.device))


def check_turns(bench: Bench, row: dict[str, Any], until: float) -> None:
    """Two contexts take turns on CUDA graphs under a sampler of several steps, which holds the outputs of both."""
    model = built(TINY_DIT, bench.device, torch.float32)
    calls = calls_of(TINY_DIT, model, 1, 8, bench.device, torch.float32)
    cached = rfc_fx.transform(model, rfc.Method(estimator=RFE, schedule=equal_gaps(8, 4)))

    def both(call: Any) -> list[Tensor]:
        held: deque[Tensor] = deque(maxlen=4)
        sums: list[Tensor] = []
        with torch.no_grad(), cached.generation():
            for arguments in calls:
                for name, sign in (("cond", 1.0), ("uncond", -1.0)):
                    with cached.cache_context(name):
                        held.append(call(**arguments | {"hidden_states": sign * arguments["hidden_states"]})[0])
                sums.append(torch.stack(list(held)).sum(0))
        return sums

    expected = both(cached)
    compiled = bench.compiled(cached, graphs=bench.cuda)
    worst = max(distance(both(compiled), expected) for _ in range(3))
    row |= {"relative_difference": {GRAPHS: worst if math.isfinite(worst) else str(worst)}}
    row["passed"] = worst <= TOLERANCES[torch.float32][1]


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
            row["kept_outputs"][way] = got.validity
            row["passed"] = row["passed"] and worst <= tolerance and got.phases == expected.phases

    outcome: dict[str, Any] = {}
    tried(outcome, left(until), twice)
    if outcome:
        row[way] = outcome
        row["passed"] = row["passed"] and "error" not in outcome


class Case(NamedTuple):
    """A small workload, a type, an estimator."""

    workload: Workload
    dtype: torch.dtype
    estimator: str
    hoists: bool = False
    has_twin: bool = False

    @property
    def name(self) -> str:
        """As it is recorded."""
        words = [self.workload.name, str(self.dtype).removeprefix("torch."), self.estimator, *(["hoisted"] if self.hoists else [])]
        return ", ".join(words)


CASES = [
    Case(TINY_DIT, torch.bfloat16, "RFE m=1"),
    Case(TINY_DIT, torch.float32, "RFE m=1", has_twin=True),
    Case(TINY_DIT, torch.float32, "RFE m=1, sketch 16, int8"),
    Case(TINY_FLUX, torch.bfloat16, "RFE m=1", hoists=True),
    Case(TINY_WAN, torch.bfloat16, "RFE m=1"),
]
"""What is checked, the type that everybody uses first; what is compiled without CUDA graphs is checked on the CPU."""

TURNS = "dit, float32, two contexts in turns"


def checks(bench: Bench, rows: dict[str, Any], until: float) -> None:
    """All cases, as far as time goes."""
    parts: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
        (case.name, partial(_checked, bench, case=case, until=until)) for case in CASES
    ]
    parts.insert(2, (TURNS, partial(check_turns, bench, until=until)))
    for name, part in parts:
        row = rows.setdefault(name, {})
        tried(row, left(until), partial(part, row))
        bench.save()
        forget()


def _checked(bench: Bench, row: dict[str, Any], *, case: Case, until: float) -> None:
    check(bench, row, case, until)
