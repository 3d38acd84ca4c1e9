"""The methods that the quality laboratory compares, as a table: another method is another line.

A method gets its number of full computations in one of three ways. `listed`: the steps are given beforehand, the same for all such methods.
`placed`: it places so many itself. `thresholded`: the data (or a calibration) decides, and a threshold is found that gives the number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

import rfc
from benchmarks.latency.methods import full_steps
from benchmarks.quality.entry import Entry, Facts
from rfc.estimators.base import Coefficients
from rfc.method import Method
from rfc.placement.chebyshev import placed_steps
from rfc.schedules.base import Unit
from rfc.state import Clock, State
from rfc_fx.tools.calibrate import LISTS, forecasts, listed
from rfc_fx.zoo import DIGITS_PREDICTOR


@dataclass(frozen=True, kw_only=True)
class Weighted(rfc.Taylor):
    """Taylor's forecast with all its steps longer or shorter by a constant: O_hat = O(t) + w sum_i k^i/i! f_i (RFC's control of RFE)."""

    weight: float = 1.0

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        return [self.weight * c for c in super().coefficients(state, I, clock)]


MOVED = LISTS
"""Lists of full steps of which the calibrated method is the best, as many as `rfc-fx calibrate` draws."""


def _uniform(name: str, kind: Literal["published", "RFC", "ours", "control"], estimator: rfc.Estimator, **more: str) -> Entry:
    """An estimator at equal gaps."""

    def make(steps: list[int]) -> Method:
        return rfc.Method(estimator=estimator, schedule=rfc.Listed(full_steps=steps), granularity=more.get("granularity"))

    return Entry(name=name, kind=kind, listed=make, note=more.get("note", ""))


def _rcs(name: str, kind: Literal["published", "RFC", "ours", "control"], estimator: rfc.Estimator, order: int = 1) -> Entry:
    """An estimator with RCS of that order."""
    return Entry(
        name=name,
        kind=kind,
        thresholded=lambda tau, facts: rfc.Method(estimator=estimator, schedule=rfc.RCS(tau=tau, order=order)),
    )


def _planned(name: str, where: Literal["first", "all"]) -> Entry:
    """RFE of order 1 at steps that RCS chose beforehand."""
    return Entry(
        name=name,
        kind="control",
        thresholded=lambda tau, facts: rfc.Method(estimator=rfc.RFE(order=1), schedule=rfc.Listed(full_steps=facts.planned(tau, where))),
    )


def _beforehand(name: str, make: Callable[[int, Facts], Method]) -> tuple[Entry, Entry]:
    """A method that places its full steps itself, and the best of some forecasts at full steps moved from there."""
    tried = forecasts(rfc.Chebyshev())
    note = f"the best of {len(tried)} forecasts, at the best of {MOVED} lists of full steps on the seeds that thresholds are found with"
    own = Entry(name=name, kind="ours", placed=make)
    return own, Entry(name=f"{name}, calibrated", kind="ours", placed=make, moved=MOVED, forecasts=tried, note=note)


def _placed(name: str, estimator: rfc.Estimator, unit: Unit = "step") -> Entry:
    """An estimator that counts time in `unit`, at steps placed as `rfc.Chebyshev` places them, but less dense at the ends."""

    def make(nfc: int, facts: Facts) -> Method:
        places = placed_steps(nfc, facts.steps, clustering=0.6)
        return rfc.Method(estimator=estimator, schedule=rfc.Placed(full_steps=places, num_steps=facts.steps, unit=unit))

    return Entry(name=f"{name} + placed", kind="control", placed=make)


def _at_levels(name: str, estimator: rfc.Estimator, unit: Unit = "interval") -> Entry:
    """An estimator at the full steps of `rfc.LogSNR`."""

    def make(nfc: int, facts: Facts) -> Method:
        placed = listed(rfc.LogSNR(facts.scheduler, facts.steps, nfc).schedule, facts.steps)
        return rfc.Method(estimator=estimator, schedule=replace(placed, unit=unit))

    return Entry(name=f"{name} + LogSNR steps", kind="control", placed=make)


def _newton(order: int) -> Entry:
    """Newton's polynomial with RCS from the first step on."""
    return Entry(
        name=f"NewtonRCS m={order}",
        kind="ours",
        thresholded=lambda tau, facts: rfc.NewtonRCS(tau=tau, order=order),
        note="RCS decides from the second step on; all other methods with RCS have 3 leading full steps",
    )


def _token_wise(make: Callable[..., Method]) -> Entry:
    """ToCa or DuCa at the interval that gives the number of full steps."""
    return Entry(
        name=make.__name__,
        kind="published",
        thresholded=lambda interval, facts: make(interval=round(interval), num_steps=facts.steps),
        low=1.0,
        note="its threshold is the interval; a skipped step also computes some tokens of the feed-forwards",
    )


def _reuse_at_tocas(interval: float, facts: Facts) -> Method:
    """Plain reuse at the full steps that ToCa and DuCa have with that interval."""
    toca = rfc.ToCa(interval=round(interval), num_steps=facts.steps)
    return rfc.Method(estimator=rfc.Reuse(), schedule=rfc.Listed(full_steps=full_steps(toca.schedule, facts.steps)))


def _spectrum(weight: float) -> Entry:
    """Spectrum at the growth of its window that gives the number of full steps."""

    def make(nfc: int, facts: Facts) -> Method:
        return rfc.Spectrum(num_steps=facts.steps, weight=weight).with_nfc(nfc)

    note = "5 leading full steps where as many are left, fewer where not"
    return Entry(name=f"Spectrum w={weight:g}", kind="published", placed=make, note=note)


def mag_cache(threshold: float, facts: Facts) -> Method:
    return rfc.MagCache(ratios=facts.ratios(), threshold=threshold, max_skip=facts.steps, retention=2 / facts.steps, num_steps=facts.steps)


ENTRIES: tuple[Entry, ...] = (
    _uniform("FORA", "published", rfc.Reuse()),
    *(_uniform(f"TaylorSeer m={m}", "published", rfc.Taylor(order=m)) for m in (1, 2, 3)),
    _uniform("HiCache m=2", "published", rfc.Hermite(order=2)),
    _uniform("FoCa", "published", rfc.PredictorCorrector()),
    _uniform("TaylorSeer Lite m=1", "published", rfc.Taylor(order=1), granularity="output"),
    _uniform("TaylorSeer Lite m=2", "published", rfc.Taylor(order=2), granularity="output"),
    _uniform("Delta-DiT", "published", rfc.Reuse(), granularity="blocks[1:]", note="the first block runs in every step"),
    Entry(
        name="TeaCache",
        kind="published",
        thresholded=lambda threshold, facts: rfc.TeaCache(threshold=threshold, num_steps=facts.steps),
        note="no coefficients are published for these models: the identity; first and last step full, as published",
    ),
    Entry(
        name="First-Block cache",
        kind="published",
        thresholded=lambda threshold, facts: rfc.FirstBlockCache(threshold=threshold),
        note="the first block runs in every step",
    ),
    Entry(
        name="DiCache",
        kind="published",
        thresholded=lambda threshold, facts: rfc.DiCache(threshold=threshold, num_steps=facts.steps),
        note="the first block runs in every step; 2 leading full steps and the last, not the published leading fifth of them",
    ),
    Entry(
        name="EasyCache",
        kind="published",
        thresholded=lambda threshold, facts: rfc.EasyCache(threshold=threshold, warmup=2, num_steps=facts.steps),
        note="the residual of all blocks, not of the whole model; 2 leading full steps and the last, not the published 5",
    ),
    Entry(
        name="SeaCache",
        kind="published",
        thresholded=lambda threshold, facts: rfc.SeaCache(facts.scheduler, threshold=threshold, num_steps=facts.steps, max_skip=None),
        note="no bound on skips in a row, for the published one (2) leaves no room below 17 of 50",
    ),
    *(_spectrum(weight) for weight in (1.0, 0.5)),
    Entry(
        name="MagCache",
        kind="published",
        thresholded=mag_cache,
        low=1e-7,
        note="2 leading full steps and no bound on skips in a row, for the published ones (a fifth, 3) leave no room below 20 of 50",
    ),
    Entry(
        name="SpeCa",
        kind="published",
        thresholded=lambda base, facts: rfc.SpeCa(base=base, floor=base / 10, max_drafts=facts.steps, num_steps=facts.steps),
        note="a verified draft also runs the last block; the threshold's floor is a tenth of its base, and drafts in a row are not bounded",
    ),
    *(_token_wise(make) for make in (rfc.ToCa, rfc.DuCa)),
    Entry(
        name="DisCa",
        kind="published",
        listed=lambda steps: rfc.DisCa(predictor=DIGITS_PREDICTOR, full_steps=steps),
        note="a skipped step runs the predictor, which the digits model alone has",
    ),
    _rcs("RFC m=1", "RFC", rfc.RFE(order=1), order=1),
    _rcs("RFC m=2", "RFC", rfc.RFE(order=2), order=2),
    *(_rcs(f"Projective m={m} + RCS", "ours", rfc.Projective(order=m)) for m in (1, 2, 3)),
    *(_rcs(f"Newton m={m} + RCS", "ours", rfc.Newton(order=m)) for m in (2, 3)),
    *(_newton(m) for m in (2, 3)),
    *_beforehand("Chebyshev", lambda nfc, facts: rfc.Chebyshev(nfc=nfc, num_steps=facts.steps)),
    *_beforehand("LogSNR", lambda nfc, facts: rfc.LogSNR(facts.scheduler, facts.steps, nfc)),
    _uniform("RFE m=1, uniform", "control", rfc.RFE(order=1)),
    _uniform("RFE m=2, uniform", "control", rfc.RFE(order=2)),
    _rcs("Taylor m=1 + RCS", "control", rfc.Taylor(order=1), order=1),
    _rcs("Taylor m=2 + RCS", "control", rfc.Taylor(order=2), order=2),
    *(_uniform(f"Taylor m=1 x {w}", "control", Weighted(order=1, weight=w)) for w in (0.8, 1.2)),
    _uniform("RFE m=1 per token, uniform", "control", rfc.RFE(order=1, norm="token")),
    _uniform("RFE m=1 per tensor, uniform", "control", rfc.RFE(order=1, norm="tensor")),
    *(_placed(f"Taylor m={m}", rfc.Taylor(order=m)) for m in (1, 2)),
    *(_placed(f"RFE m={m}", rfc.RFE(order=m)) for m in (1, 2)),
    *(_placed(f"Newton m={m}", rfc.Newton(order=m)) for m in (2, 3)),
    *(_placed(f"Newton m={m} damped", rfc.Newton(order=m, damping=0.5)) for m in (2, 3)),
    *(_placed(f"Newton m={m} by intervals", rfc.Newton(order=m), "interval") for m in (1, 2)),
    _placed("Newton m=2 damped by intervals", rfc.Newton(order=2, damping=0.5), "interval"),
    _placed("Reuse", rfc.Reuse()),
    _at_levels("Reuse", rfc.Reuse()),
    _at_levels("Taylor m=1", rfc.Taylor(order=1)),
    *(_at_levels(f"RFE m={m}", rfc.RFE(order=m)) for m in (1, 2)),
    _at_levels("Newton m=2", rfc.Newton(order=2)),
    _at_levels("Newton m=2 damped by steps", rfc.Newton(order=2, damping=0.5), "step"),
    Entry(name="Reuse at ToCa's steps", kind="control", thresholded=_reuse_at_tocas, low=1.0),
    _uniform("Newton m=2, uniform", "control", rfc.Newton(order=2)),
    _planned("RFE m=1 + planned RCS, first site", "first"),
    _planned("RFE m=1 + planned RCS, all sites", "all"),
)


METHODS: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


BASELINES = tuple(f"TaylorSeer m={m}" for m in (1, 2, 3))
"""The best of these at its own uniform schedule is what ratios are taken against."""


PUBLISHED_RFC = ("RFC m=1", "RFC m=2")


QUICK = ("TaylorSeer m=1", "MagCache", "RFC m=1")


def entries_named(names: Iterable[str]) -> list[Entry]:
    """Entries by name, in the order of the table; KeyError for a name that is not in it."""
    named = list(names)
    for name in named:
        if name not in METHODS:
            raise KeyError(name)
    return [entry for entry in ENTRIES if entry.name in named]
