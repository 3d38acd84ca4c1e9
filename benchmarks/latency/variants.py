"""Variants of the latency benchmark: full computation, and for each method the eager twin and the compiled graph, hoisted and not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.progress import track

import rfc
import rfc.eager
import rfc_fx
from benchmarks.latency.methods import ESTIMATORS, WHOLE, full_steps
from benchmarks.latency.rivals.rival import Rival, reason
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import Calls, timesteps_of


def variants(
    model: Any, names: list[str], plan: rfc.RCS, calls: Calls, refused: dict[str, str], *, per_sample: bool = False
) -> list[TimedVariant]:
    """Full computation, and for each estimator the eager twin (where its state is the paper's) and the compiled graph, hoisted and not.

    A step of most is decided by data (RCS, whose PREFIX is part of the step); "fixed steps" are listed beforehand. What is more than an
    estimator has a schedule of its own (`benchmarks.latency.methods`), and may be `refused` by a model.
    """
    ways = [TimedVariant("full, eager", model), TimedVariant("full, compiled", torch.compile(model, fullgraph=True))]
    timesteps = timesteps_of(calls)
    for name in names:
        if name in WHOLE:
            whole = WHOLE[name](plan, len(calls))
            try:
                hoisted = rfc_fx.transform(model, whole, example_inputs=calls[0], config=rfc_fx.Config(hoist=True))
            except rfc_fx.RFCError as error:
                refused[name] = str(error).partition("\n")[0]
                continue
            twin = rfc.eager.cached(model, whole)
            hoisted.prepare(timesteps)
            ways.append(TimedVariant(f"{name}, eager twin", twin, twin))
            ways.append(TimedVariant(f"{name}, hoisted, compiled", torch.compile(hoisted, fullgraph=True), hoisted))
            continue
        method = rfc.Method(estimator=ESTIMATORS[name], schedule=plan)
        if isinstance(ESTIMATORS[name], rfc.Taylor | rfc.Reuse) or ESTIMATORS[name] == rfc.RFE(order=ESTIMATORS[name].orders):
            twin = rfc.eager.cached(model, method)
            ways.append(TimedVariant(f"{name}, eager twin", twin, twin))
            plain = rfc_fx.transform(model, method)
            ways.append(TimedVariant(f"{name}, compiled", torch.compile(plain, fullgraph=True), plain))
        deciding = {"hoisted": method}
        if not ESTIMATORS[name].needs_input:  # the steps need no data where the method needs none
            steps = full_steps(plan, len(calls))
            deciding["hoisted, fixed steps"] = rfc.Method(estimator=ESTIMATORS[name], schedule=rfc.Listed(full_steps=steps))
        for how, of in deciding.items():
            hoisted = rfc_fx.transform(model, of, config=rfc_fx.Config(hoist=True))
            hoisted.prepare(timesteps)
            ways.append(TimedVariant(f"{name}, {how}, compiled", torch.compile(hoisted, fullgraph=True), hoisted))
        if per_sample:
            alone = rfc_fx.transform(model, method, config=rfc_fx.Config(decision="per_sample"))
            ways.append(TimedVariant(f"{name}, per sample, compiled", torch.compile(alone, fullgraph=True), alone))
    return ways


def timed(ways: list[TimedVariant], calls: Calls, where: torch.device, rounds: int) -> dict[str, str]:
    """Warm up, time in turns and audit; what a rival stumbles over is returned, and it is taken off the list."""
    refused: dict[str, str] = {}
    counted = partial(TimedVariant.run, calls=calls, device=where, count=True)
    turns: list[tuple[str, Callable[[TimedVariant], None]]] = [
        ("warm-up and compilation", partial(TimedVariant.warm_up, calls=calls, device=where)),
        *((f"round {number + 1} of {rounds}", counted) for number in range(rounds)),
        ("audit", partial(TimedVariant.audit, calls=calls)),
    ]
    for what, turn in turns:
        for variant in track(list(ways), what):
            try:
                turn(variant)
            except Exception as error:
                if not isinstance(variant.cache, Rival):
                    raise
                refused[variant.name] = reason(error)
                ways.remove(variant)
    return refused
