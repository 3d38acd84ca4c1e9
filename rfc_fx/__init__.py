"""Feature caching for diffusion transformers as a graph transformation.

model = rfc_fx.transform(pipe.transformer)
pipe.transformer = torch.compile(model, fullgraph=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

import rfc
from rfc.method import CachingMethod
from rfc.storage import stored
from rfc_fx.capture.refusals import refuse
from rfc_fx.errors import CaptureError, IllegalGraphError, NoSiteError, PredictorMismatchError, RFCError, SignatureError, StateBudgetError
from rfc_fx.io.predictor import write_predictor
from rfc_fx.io.preset import read_preset, write_preset
from rfc_fx.ir.config import Choice, Config, Decision, Dispatch
from rfc_fx.ir.plan import Plan
from rfc_fx.passes.build import build
from rfc_fx.report.explain import Explanation, explain
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.cond_model import CondModel
from rfc_fx.runtime.per_sample import PerSampleModel
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.sites.granularity import chosen_granularity, parse_bytes

__all__ = [
    "CachedModel",
    "CaptureError",
    "CondModel",
    "Explanation",
    "IllegalGraphError",
    "NoSiteError",
    "NothingSkippedWarning",
    "PerSampleModel",
    "Plan",
    "PredictorMismatchError",
    "RFCError",
    "SignatureError",
    "StateBudgetError",
    "StepsMismatchWarning",
    "explain",
    "read_preset",
    "transform",
    "write_predictor",
    "write_preset",
]


def transform(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    *,
    method: CachingMethod | str | Path | None = None,
    steps: int | None = None,
    scheduler: Any = None,
    granularity: Choice | None = None,
    dispatch: Dispatch = "host",
    decision: Decision = "batch",
    regional: bool = False,
    hoist: bool = False,
    speculate: bool | None = None,
    state_dtype: torch.dtype | None = None,
    state_budget: int | str | None = None,
) -> CachedModel:
    """Return `model` with every attention and MLP behind a guard: computed in full, or estimated from its cache.

    `example_inputs` (keyword arguments as a mapping, or positional ones as a tuple) captures at once; without them the first call does.
    `method`: a path is that of a preset (`rfc-fx calibrate`). Without one, the `scheduler` of a pipeline and its number of `steps` give
    `rfc.LogSNR.of(scheduler, steps)`, the best measured so far (no `steps`: the scheduler as it stands after a generation).
    `steps` alone, the number of calls of a generation, gives `rfc.Chebyshev(steps=steps)`; neither gives `rfc.RFC()`, which need not know
    how long a generation is.
    `granularity` is what one estimate stands for: "module" (the paper), "block", "stack" (the residual of all blocks), "output" (their
    output), "blocks[a:b]" (the residual of those blocks; the others always run); "auto" is the finest of the first three whose state fits
    `state_budget`; None is the method's own, else "module".
    `dispatch`: "host" makes PREFIX, FULL and ESTIMATE with one host decision a step; "cond" one graph with one torch.cond.
    `decision` (with "host"): "batch" decides once a step for all samples; "per_sample" runs each sample for itself, with programs of a
    batch of one, so that no result depends on batch mates; what batching gains is lost (README, "Limits").
    `regional` (with "host"): repeated blocks are compiled once, which takes less time to compile; a step may take a few percent longer.

    `hoist` (with "host"): what depends on the conditioning alone is computed once per generation, what depends on the timestep alone by a
    program of its own, for all steps at once after `model.prepare(timesteps)`.
    `speculate` (with "host"): ESTIMATE runs while the decision travels to the host, and for nothing where FULL is decided; None does so on
    CUDA devices up to 512 MiB of state.
    `state_dtype`: the differences are kept in torch.bfloat16, float16, float8_e4m3fn or int8 (`rfc.Stored`, which can do it to O as well).
    `state_budget`: bytes, or "2GiB", that the state of one context may take (a pipeline with guidance has one context or two).

    Raises TypeError or ValueError for arguments of the wrong kind and for a scheduler without noise levels, CaptureError when the forward
    cannot be traced, NoSiteError when nothing in it can be cached, StateBudgetError when its state would take more than the budget.
    """
    if method is None:
        method = _default(steps, scheduler)
    elif steps is not None or scheduler is not None:
        given = f"steps={steps}" if scheduler is None else "a scheduler"
        raise ValueError(f"transform: {given} chooses the default method, and one was given too: {method}; pass one of them")
    if isinstance(method, str | Path) and Path(method).suffix == ".json":
        method = read_preset(method)
    if not isinstance(model, nn.Module):
        raise TypeError(f"transform: model must be a torch.nn.Module, got {type(model).__name__}; for a pipeline pass pipe.transformer")
    if isinstance(model, CachedModel):
        raise TypeError("transform: the model is transformed already; pass its .model to transform it in another way")
    if not isinstance(method, CachingMethod):
        raise TypeError(f"transform: method must be an rfc method such as rfc.RFC(tau=0.1) or a preset's .json file, got {method!r}")
    for name, value, known in (
        ("dispatch", dispatch, get_args(Dispatch)),
        ("decision", decision, get_args(Decision)),
    ):
        if value not in known:
            raise ValueError(f"transform: {name} must be one of {', '.join(known)}, got {value!r}")
    try:
        size = chosen_granularity(granularity, method)
    except ValueError as error:
        raise ValueError(f"transform: {error}") from None
    for wanted, what, why in (
        (regional, "regional", "the branches of a torch.cond are compiled whole"),
        (hoist, "hoist", "a torch.cond is one graph for every step"),
        (speculate, "speculate", "a torch.cond is decided on the device"),
        (decision == "per_sample", 'decision="per_sample"', "one torch.cond has one predicate for the batch"),
    ):
        if wanted and dispatch == "cond":
            raise ValueError(f'transform: {what} needs dispatch="host"; {why}')
    if size == "auto" and state_budget is None:
        raise ValueError("transform: granularity=\"auto\" needs a state_budget, such as state_budget='2GiB'")
    budget = None if state_budget is None else parse_bytes(state_budget)
    method = stored(method, state_dtype)
    refuse(model)
    kind = CondModel if dispatch == "cond" else PerSampleModel if decision == "per_sample" else CachedModel
    options = Config(
        method=method,
        granularity=size,
        dispatch=dispatch,
        decision=decision,
        regional=regional,
        hoist=hoist,
        speculate=speculate,
        state_budget=budget,
    )
    cached = kind(model, options, build)
    if example_inputs is not None:
        args, kwargs = ((), example_inputs) if isinstance(example_inputs, Mapping) else (tuple(example_inputs), {})
        cached.trace(*args, **kwargs)
    return cached


def _default(steps: int | None, scheduler: Any) -> CachingMethod:
    """The best method for what is known of a generation."""
    if scheduler is None:
        return rfc.RFC() if steps is None else rfc.Chebyshev(steps=steps)
    try:
        return rfc.LogSNR.of(scheduler, steps)
    except ValueError as error:
        raise ValueError(f"transform: {error}") from error
