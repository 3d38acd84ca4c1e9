"""Checks: eager twin, programs, compiled programs and CUDA graphs agree in outputs and phases."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rfc
import rfc.eager
import rfc_fx
from benchmarks.gpu.bench import Bench, forget, left, reason, tried
from benchmarks.gpu.estimators import ESTIMATORS, GRAPHS, RFE, SKETCHED
from benchmarks.gpu.workloads import SMALL, built
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


def check(bench: Bench, row: dict[str, Any], workload: Workload, dtype: torch.dtype, name: str, until: float) -> None:
    """Eager twin, programs, compiled programs and compiled programs on CUDA graphs agree in their outputs and in their phases."""
    model = built(workload, bench.device, dtype)
    calls = calls_of(workload, model, 1, 12, bench.device, dtype)
    plan = rfc.RCS(tau=0.3) if dtype == torch.float32 else equal_gaps(12, 6)  # near tau bfloat16's rounding may decide otherwise
    method = rfc.Method(estimator=ESTIMATORS[name], schedule=plan)
    cached = rfc_fx.transform(model, method, config=rfc_fx.Config(hoist=ESTIMATORS[name] is not RFE))
    expected = generation(cached, cached, calls)
    row |= {"phases": expected.phases, "kept_outputs": {"programs": expected.validity}, "relative_difference": {}, "passed": True}
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
            row["kept_outputs"][way] = got.validity
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
