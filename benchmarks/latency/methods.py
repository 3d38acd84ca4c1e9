"""The caching methods as `benchmarks.latency` times them: all their work in every step, but as nearly as can be the same steps in full.

Where data decides, the rule is computed as ever and then overruled by the count of steps (`counted`). SpeCa, ToCa and DuCa have a count of
their own; they get the setting whose number of full steps is nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import typer
from jaxtyping import Bool
from torch import Tensor

import rfc
from rfc.method import Method
from rfc.phase import FULL
from rfc.record import Record
from rfc_fx.zoo import DIGITS_PREDICTOR

ESTIMATORS: dict[str, rfc.Estimator] = {
    "FORA": rfc.Reuse(),
    "Taylor m=1": rfc.Taylor(order=1),
    "Taylor m=1, bfloat16": rfc.Stored(estimator=rfc.Taylor(order=1), differences=torch.bfloat16),
    "Taylor m=1, int8": rfc.Stored(estimator=rfc.Taylor(order=1), differences=torch.int8),
    "HiCache m=2": rfc.Hermite(order=2),
    "Newton m=2": rfc.Newton(order=2),
    "RFE m=1": rfc.RFE(order=1),
    "RFE m=1, sketch 16": rfc.RFE(order=1, sketch=16),
    "RFE m=1, sketch 16, bfloat16": rfc.Stored(estimator=rfc.RFE(order=1, sketch=16), differences=torch.bfloat16),
    "RFE m=1, sketch 16, int8": rfc.Stored(estimator=rfc.RFE(order=1, sketch=16), differences=torch.int8),
    "RFE m=2": rfc.RFE(order=2),
    "Projective m=2": rfc.Projective(order=2),
}
"""What estimated steps may be where every module is a site."""


def equal_gaps(steps: int, nfc: int) -> rfc.RCS:
    """A data-driven schedule (PREFIX, its error and the decision are part of every step) that makes exactly `nfc` of `steps` full."""
    for warmup in range(2, nfc + 1):
        for interval in range(1, steps + 1):
            if warmup + (steps - warmup) // interval == nfc:
                return rfc.RCS(tau=float("inf"), warmup=warmup, max_skip=interval - 1)
    raise typer.BadParameter(f"no equal gaps give {nfc} full steps of {steps}")


def full_steps(plan: rfc.Schedule, steps: int) -> list[int]:
    """The steps that a schedule makes full where its error is nought."""
    generation, numbers = Record(), plan.numbers()
    return [step for step in range(steps) if generation.decide(plan, numbers, 0.0, None) == FULL.name]


def counted(schedule: rfc.Schedule, plan: rfc.RCS) -> rfc.Schedule:
    """The schedule with its signals, state and error, whose full steps are those of `plan`, which has an infinite tau."""
    kind: Any = type(schedule)
    fixed = {name: plan.numbers()[name] for name in ("warmup", "max_skip")}

    class Counted(kind):  # type: ignore[misc]
        def numbers(self) -> dict[str, Tensor]:
            own: dict[str, Tensor] = super().numbers()
            return own | fixed

        @staticmethod
        def full(numbers: dict[str, Tensor], step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
            return (step < numbers["warmup"]) | (k > numbers["max_skip"]) | torch.isnan(total)

    overruled: rfc.Schedule = Counted(**{name: getattr(schedule, name) for name in schedule.__dataclass_fields__})  # type: ignore[attr-defined]
    return overruled


def nearest(make: Callable[[int], Method], steps: int, nfc: int) -> Method:
    """Of the settings 1 to `steps`, the method whose number of full steps is nearest to `nfc`."""
    return min((make(setting) for setting in range(1, steps + 1)), key=lambda method: abs(len(full_steps(method.schedule, steps)) - nfc))


def _listed(estimator: rfc.Estimator, granularity: str) -> Callable[[rfc.RCS, int], Method]:
    def make(plan: rfc.RCS, steps: int) -> Method:
        full = full_steps(plan, steps)
        schedule = rfc.Listed(full_steps=full)
        if estimator.num_weights:  # any weights are the same work
            schedule = rfc.Weighted(full_steps=full, num_steps=steps, weights=[(0.1,) * estimator.num_weights] * steps)
        return rfc.Method(estimator=estimator, schedule=schedule, granularity=granularity)

    return make


def _overruled(method: Method, granularity: str, probe: int = 0) -> Callable[[rfc.RCS, int], Method]:
    def make(plan: rfc.RCS, steps: int) -> Method:
        overruled = counted(method.schedule, plan)
        return rfc.Method(estimator=method.estimator, schedule=overruled, granularity=granularity, probe=probe)

    return make


def _speca(plan: rfc.RCS, steps: int) -> Method:
    def make(drafts: int) -> Method:
        return rfc.SpeCa(base=math.inf, max_drafts=drafts, order=1, enhanced=0, num_steps=steps)

    return nearest(make, steps, len(full_steps(plan, steps)))


def _token_wise(kind: Callable[..., Method]) -> Callable[[rfc.RCS, int], Method]:
    return lambda plan, steps: nearest(lambda interval: kind(interval=interval, num_steps=steps), steps, len(full_steps(plan, steps)))


WHOLE: dict[str, Callable[[rfc.RCS, int], Method]] = {
    "LogSNR, module": _listed(rfc.LogSNR().estimator, "module"),
    "LogSNR, stack": _listed(rfc.LogSNR().estimator, "stack"),
    "LogSNR, output": _listed(rfc.LogSNR().estimator, "output"),
    "LogSNR, prediction": _listed(rfc.LogSNR(is_flow=True).estimator, "prediction"),
    "TaylorSeer Lite m=1": _listed(rfc.Taylor(order=1), "output"),
    "Delta-DiT": _listed(rfc.Reuse(), "blocks[1:]"),
    "TeaCache": _overruled(rfc.TeaCache(), "stack"),
    "First-Block cache": _overruled(rfc.FirstBlockCache(), "blocks[1:]", probe=1),
    "DiCache": _overruled(rfc.DiCache(), "stack", probe=1),
    "MagCache": _listed(rfc.Reuse(), "stack"),
    "SpeCa m=1": _speca,
    "ToCa": _token_wise(rfc.ToCa),
    "DuCa": _token_wise(rfc.DuCa),
    "DisCa": lambda plan, steps: rfc.DisCa(predictor=DIGITS_PREDICTOR, full_steps=full_steps(plan, steps)),
}
"""Methods that are more than an estimator at every module: made from the plan of full steps and the number of steps."""


KNOWN = (*ESTIMATORS, *WHOLE)
