"""The published methods, each with its published settings: functions that return an `rfc.Method`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rfc.estimators.aligned import Aligned
from rfc.estimators.newton import Newton
from rfc.estimators.predicted import Predicted
from rfc.estimators.predictor_corrector import PredictorCorrector
from rfc.estimators.relational import RFE
from rfc.estimators.taylor import Hermite, Reuse, Taylor
from rfc.method import Method
from rfc.phase import FULL, REUSE
from rfc.predictor import PredictorError, checksum
from rfc.schedules.base import checked_count
from rfc.schedules.change import AnchorChange, ProbeChange, StepChange
from rfc.schedules.fixed import Every, Listed, Phased
from rfc.schedules.rcs import RCS
from rfc.schedules.verified import Verified
from rfc.storage import Stored
from rfc.token_selection import Tokens


def FullCompute() -> Method:
    """Every step in full: the model itself, with the bookkeeping of a method around it."""
    return Method(estimator=Reuse(), schedule=Every(interval=1, warmup=1), name="FullCompute")


def FORA(*, interval: int = 4, warmup: int = 2) -> Method:
    """Reuse of attention and MLP outputs between every `interval`-th step (arXiv 2407.01425)."""
    return Method(estimator=Reuse(), schedule=Every(interval=interval, warmup=warmup), name="FORA")


def TaylorSeer(*, interval: int = 4, order: int = 2, warmup: int = 2) -> Method:
    """Taylor forecast of attention and MLP outputs between every `interval`-th step (arXiv 2503.06923)."""
    return Method(estimator=Taylor(order=order), schedule=Every(interval=interval, warmup=warmup), name="TaylorSeer")


def TaylorSeerLite(*, interval: int = 4, order: int = 2, warmup: int = 2) -> Method:
    """TaylorSeer of the last block's output alone: a skipped step runs no block (arXiv 2503.06923, the Lite form of its code)."""
    schedule = Every(interval=interval, warmup=warmup)
    return Method(estimator=Taylor(order=order), schedule=schedule, granularity="output", name="TaylorSeerLite")


def HiCache(*, interval: int = 4, order: int = 2, sigma: float = 0.5, warmup: int = 2) -> Method:
    """TaylorSeer with scaled Hermite polynomials (arXiv 2508.16984)."""
    return Method(estimator=Hermite(order=order, sigma=sigma), schedule=Every(interval=interval, warmup=warmup), name="HiCache")


def FoCa(*, interval: int = 4, warmup: int = 2) -> Method:
    """An ODE solver's step from the latest value of every attention and MLP output, corrected by the last full steps (arXiv 2508.16211)."""
    return Method(estimator=PredictorCorrector(), schedule=Every(interval=interval, warmup=warmup), name="FoCa")


def DeltaDiT(*, interval: int = 3, first: int = 1, last: int | None = None, warmup: int = 1) -> Method:
    """Reuse of what a range of blocks adds to the stream; the others always run (Delta-DiT, arXiv 2406.01125; DeepCache's analogue).

    `first` is the first block of the range, `last` the block after it (None: to the end).
    """
    blocks = f"blocks[{first}:{'' if last is None else last}]"
    return Method(estimator=Reuse(), schedule=Every(interval=interval, warmup=warmup), granularity=blocks, name="DeltaDiT")


def RFC(*, tau: float = 0.1, order: int = 1, warmup: int = 3) -> Method:
    """Relational feature caching: RFE of order m with RCS of threshold tau (arXiv 2602.19506, sections 3.2 and 3.3).

    `tau` is the one knob: larger skips more. It has no unit (an accumulated relative L1 error) and differs per model and
    number of steps; calibrate it to the number of full computations (NFC) you can afford. `warmup` leading steps are full.
    """
    return Method(estimator=RFE(order=order), schedule=RCS(tau=tau, warmup=warmup, order=order), name="RFC")


def NewtonRCS(*, tau: float = 0.15, order: int = 2, warmup: int = 1) -> Method:
    """RCS decides from the first step on; Newton's polynomial through the full steps it chose is the forecast. Not in the papers.

    What it takes from RFC is the schedule (arXiv 2602.19506, section 3.3), with one leading full step in place of several neighbouring
    ones: differences over a gap of one step say little about the many steps after it. In the place of the estimate stands the polynomial
    that is exact over the unequal gaps RCS leaves (`Newton`). A skipped step needs no site's input, so it is one pass over the state.
    `tau` as in `RFC`. Measured: a third of the error of TaylorSeer on one model, more than that on another: a polynomial does not know how
    far the input has moved, `RFE` does. Try it on yours before relying on it.
    """
    return Method(estimator=Newton(order=order), schedule=RCS(tau=tau, warmup=warmup), name="NewtonRCS")


def SpeCa(
    *,
    base: float = 0.1,
    decay: float = 0.01,
    floor: float = 0.01,
    min_drafts: int = 2,
    max_drafts: int = 5,
    order: int = 4,
    enhanced: int = 3,
    num_steps: int = 50,
) -> Method:
    """Taylor drafts, of which the last block is verified; a bad one makes the next step full (arXiv 2509.11628; `Verified`)."""
    schedule = Verified(
        base=base,
        decay=decay,
        floor=floor,
        min_drafts=min_drafts,
        max_drafts=max_drafts,
        enhanced=enhanced,
        num_steps=num_steps,
    )
    return Method(estimator=Taylor(order=order), schedule=schedule, name="SpeCa")


def TeaCache(
    *, threshold: float = 0.1, coefficients: Sequence[float] = (1.0, 0.0), warmup: int = 1, num_steps: int | None = None
) -> Method:
    """Reuse of the whole stack's residual, until the first input has changed enough step by step (arXiv 2411.19108; `StepChange`).

    `threshold` and `coefficients` belong to a model; `num_steps`, where given, makes the last step full as published.
    """
    schedule = StepChange(threshold=threshold, coefficients=tuple(coefficients), warmup=warmup, num_steps=num_steps)
    return Method(estimator=Reuse(), schedule=schedule, granularity="stack", name="TeaCache")


def FirstBlockCache(*, threshold: float = 0.05, blocks: int = 1, tail: int = 0, warmup: int = 1) -> Method:
    """The first block always runs; the others' residual is reused while what the first adds stays close to the last full step's.

    ParaAttention's First-Block cache, diffusers' `FirstBlockCacheConfig`; cache-dit's DBCache for `blocks` of more (F8B0: 8) and a `tail`
    of last blocks that always run.
    """
    checked_count("FirstBlockCache", "blocks", blocks, 1)
    checked_count("FirstBlockCache", "tail", tail, 0)
    return Method(
        estimator=Reuse(),
        schedule=AnchorChange(threshold=threshold, warmup=warmup),
        granularity=f"blocks[{blocks}:{-tail if tail else ''}]",
        probe=blocks,
        name="FirstBlockCache",
    )


def DiCache(*, threshold: float = 0.4, depth: int = 1, warmup: int = 2, num_steps: int | None = None) -> Method:
    """The first blocks are a probe: they decide, and say how far the stack's residual has moved (arXiv 2508.17356).

    `num_steps`, where given, makes the last step full; published: the first fifth of the steps too (`warmup` = num_steps // 5 + 1).
    """
    checked_count("DiCache", "depth", depth, 1)
    schedule = ProbeChange(threshold=threshold, warmup=warmup, num_steps=num_steps)
    return Method(estimator=Aligned(), schedule=schedule, granularity="stack", probe=depth, name="DiCache")


def ToCa(*, interval: int = 4, num_steps: int = 50, **tokens: Any) -> Method:
    """Attention is reused, and of each feed-forward the tokens that receive most attention are computed (arXiv 2410.05317).

    `tokens` are settings of `rfc.Tokens`, whose defaults are those for DiT with 50 steps of DDIM. `interval` is N, before it is made longer
    in the first steps and shorter in the last (`countdown`). As published the number of tokens changes from step to step; here it takes
    `parts` values. Another `interval` or number of steps compiles nothing.
    """
    return _token_wise("ToCa", interval, num_steps, Tokens(**tokens), alternates=False)


def DuCa(*, interval: int = 3, num_steps: int = 50, **tokens: Any) -> Method:
    """Between full steps it takes turns: one runs the final layer alone, the next is as ToCa's (arXiv 2412.18911).

    The step before a full one is always as ToCa's: for N = 3 full, final layer, tokens; for N = 4 full, tokens, final layer, tokens.
    `tokens` are settings of `rfc.Tokens`, by default `DUCA_TOKENS`. `score`: "value", the paper's V-caching, needs no attention map;
    "random" is its second version's; "attention" that of its code's README for DiT, of which the other defaults are.
    """
    return _token_wise("DuCa", interval, num_steps, Tokens(**{**DUCA_TOKENS, **tokens}), alternates=True)


DUCA_TOKENS = {"ratio": 0.05, "score": "value", "bonus": 0.8, "step_weight": 0.4, "layer_weight": 0.8}


def _token_wise(name: str, interval: int, num_steps: int, tokens: Tokens, *, alternates: bool) -> Method:
    checked_count(name, "interval", interval, 1)
    checked_count(name, "num_steps", num_steps, 1)
    schedule = _phases(interval, num_steps, tokens, alternates)
    return Method(estimator=Reuse(), schedule=schedule, granularity="module", tokens=tokens, name=name)


@lru_cache(maxsize=64)
def _phases(interval: int, num_steps: int, tokens: Tokens, alternates: bool) -> Phased:
    """The phase of each step, from how many are left until the next full one: odd PARTIAL, even PARTIAL too, or REUSE (`alternates`)."""
    phases = [
        FULL.name if not left else REUSE.name if alternates and left % 2 == 0 else tokens.phase(step, num_steps)
        for step, left in enumerate(countdown(interval, num_steps))
    ]
    return Phased(phases=phases, branches=(FULL.name, *tokens.phases, *((REUSE.name,) if alternates else ())), period=float(interval))


def countdown(interval: int, num_steps: int) -> list[int]:
    """Steps left until the next full one, at each step; 0: it is full (the schedule of ToCa's and DuCa's code for DiT).

    `left` counts down to 0. The first step is full, and then those that the interval in force divides: at one that does, it becomes
    round(interval / (1 + 0.4 - 0.8 left / num_steps)), but 2 where 0.2 <= left / num_steps < 0.4. The released code has the first layer
    decide before that and the others after, so that for N = 4 to 7 of 50 steps 17, 14, 13 and 14 are full in the first layer, which is what
    tables call full, and 14, 11, 10 and 8 in all layers, which is what it costs. Here a step is full when all its layers are.
    """
    now, remaining = interval, []
    for left in reversed(range(num_steps)):
        is_first = left == num_steps - 1
        if is_first or left % now == 0:
            sensitive = int(0.2 * num_steps) <= left < int(0.4 * num_steps)
            now = 2 if sensitive else max(1, round(interval / (1.4 - 0.8 * left / num_steps)))
        remaining.append(0 if is_first else left % now)
    return remaining


def DisCa(*, predictor: str | Path | None, full_steps: Sequence[int] | None = None, interval: int = 2, warmup: int = 1) -> Method:
    """Full steps by a list, or every `interval`-th; between them a predictor in the place of the blocks (arXiv 2602.05449).

    `predictor` is the folder of a predictor trained for the model (`python -m benchmarks.train_predictor` makes one); None only in
    presets. `full_steps`, where given, are counted from 0. The method holds the checksum of the weights as they are when it is made.
    Raises PredictorError where the folder holds none.
    """
    schedule = Every(interval=interval, warmup=warmup) if full_steps is None else Listed(full_steps=full_steps)
    folder, sha256 = ("", "") if predictor is None else (str(predictor), checksum(Path(predictor)))
    return Method(estimator=Predicted(folder=folder, sha256=sha256), schedule=schedule, granularity="output", name="DisCa")


def predicted_by(method: Method) -> Predicted | None:
    """The method's estimator, where it is a predictor; PredictorError where the method asks what no predictor can."""
    estimator = method.estimator
    outputs = estimator.outputs if isinstance(estimator, Stored) else None
    estimator = estimator.estimator if isinstance(estimator, Stored) else estimator
    if not isinstance(estimator, Predicted):
        return None
    if outputs is not None:
        raise PredictorError(
            f"DisCa: the cache is the predictor's input and stays in the model's type, got outputs={outputs}; leave it None"
        )
    if method.granularity != "output":
        raise PredictorError(f"DisCa: a predictor stands in for all blocks, granularity 'output', got {method.granularity!r}")
    return estimator
