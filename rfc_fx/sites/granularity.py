"""Budget: how many bytes of state each granularity and data type would take, and the finest granularity that a budget allows."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import get_args

import torch

from rfc.granularity import WITHIN_BLOCKS, GranularityName
from rfc.method import Method
from rfc.phase import phase_named
from rfc.state import SlotSpec
from rfc.storage import STORED, stored_anew
from rfc_fx.capture.export import Captured
from rfc_fx.errors import NoSiteError, StateBudgetError
from rfc_fx.ir.config import Config
from rfc_fx.sites.find import NOT_NEEDED, find_sites, needed_sites, watched
from rfc_fx.sites.residual import Rejected, SiteAnalysis
from rfc_fx.sites.state import state_slots, tokens_of_sites


def state_bytes(slots: Mapping[str, SlotSpec]) -> int:
    """Bytes of the slots."""
    return sum(prod(spec.shape) * spec.dtype.itemsize for spec in slots.values())


def alternatives(captured: Captured, method: Method) -> dict[str, dict[torch.dtype | None, int]]:
    """Bytes of state for every granularity with a site and every type of the differences; None is the method as it is."""
    sizes: dict[str, dict[torch.dtype | None, int]] = {}
    fixed = method.granularity
    for granularity in dict.fromkeys((*get_args(GranularityName), *([] if fixed is None else [fixed]))):
        variants = {dtype: method if dtype is None else stored_anew(method, dtype) for dtype in (None, *STORED)}
        try:
            sites = _sites(captured, granularity, method).sites
            watched_site = watched(sites, captured)
            sizes[granularity] = {dtype: state_bytes(state_slots(sites, watched_site, variant)) for dtype, variant in variants.items()}
        except NoSiteError:
            continue
    return sizes


def _sites(captured: Captured, granularity: str, method: Method) -> SiteAnalysis:
    analysis = find_sites(
        captured,
        granularity,
        needs_input=method.estimator.needs_input or method.tokens is not None,
        probe=method.probe,
        verifies=any(phase_named(name).verifies for name in method.schedule.branches),
    )
    return analysis if method.tokens is None or method.estimator.needs_input else _without_unread(analysis, captured, method)


def _without_unread(analysis: SiteAnalysis, captured: Captured, method: Method) -> SiteAnalysis:
    """The sites less those that only feed sites whose tokens are all reused: such a site does not read its input."""
    sites = analysis.sites
    token_wise = tokens_of_sites(sites, watched(sites, captured), method)[0]
    needed = needed_sites(captured.graph, sites, False, token_wise=token_wise)
    dropped = [Rejected(site.name, NOT_NEEDED) for site in sites if site not in needed]
    return analysis._replace(sites=needed, rejected=[*analysis.rejected, *dropped])


def granularities_for(config: Config, method: Method) -> tuple[str, ...]:
    """The granularities to try in their order: the method's or the configuration's one; else its default, and where a model has no such
    site the next finer; else with a state budget all, finest first, and without "module".

    Raises ValueError where method and configuration differ; for an estimator that corrects full steps: what it hands on must be what the
    sampler adds up, not what other blocks read; for a prediction that would be estimated from the input of the blocks; and for a method
    that verifies with anything coarser than a block.
    """
    fixed, default = method.granularity, method.default_granularity
    if fixed is not None and config.granularity not in (None, fixed):
        raise ValueError(f"granularity: {method.name} works on {fixed!r}, got {config.granularity!r}; leave granularity out")
    chosen = fixed or config.granularity
    corrects = method.estimator.corrects
    own = chosen or default or "stack"
    try:
        method.within(own)
    except ValueError:
        raise ValueError(
            f"granularity: {method.name} corrects what leaves the last block, so one estimate stands for all blocks; got {own!r}, "
            "expected 'stack', 'output' or 'prediction'"
        ) from None
    if chosen == "prediction" and (method.estimator.needs_input or method.probe):
        raise ValueError(
            f"granularity: {method.name} estimates outputs from the input of the blocks, which has another shape than the model's "
            "prediction; got 'prediction', expected 'output' or a finer one"
        )
    verifies = any(phase_named(name).verifies for name in method.schedule.branches)
    if verifies and (coarse := chosen or default) is not None and coarse not in WITHIN_BLOCKS:
        raise ValueError(
            f"granularity: {method.name} computes the last block once more to verify its estimate, so blocks have estimates of their own; "
            f"got {coarse!r}, expected 'module' or 'block'"
        )
    if granularity := chosen or ("stack" if corrects and default is None else None):
        return (granularity,)
    named = WITHIN_BLOCKS if verifies else get_args(GranularityName)
    if default is not None:
        finer = named[: named.index(default)] if default in named else named
        return (default, *reversed(finer))
    return named if config.state_budget is not None else ("module",)


def sites_within(captured: Captured, config: Config, method: Method) -> SiteAnalysis:
    """The sites of the first granularity (`granularities_for`) whose state fits the budget.

    Raises StateBudgetError that lists what each would take when none fits, NoSiteError when nothing can be cached.
    """
    granularities, budget = granularities_for(config, method), config.state_budget_bytes
    for granularity in granularities:
        try:
            sites = _sites(captured, granularity, method)
        except NoSiteError:
            if len(granularities) == 1:
                raise
            continue
        if budget is None or state_bytes(state_slots(sites.sites, watched(sites.sites, captured), method)) <= budget:
            return sites
    sizes = alternatives(captured, method)
    if not sizes:
        _sites(captured, "module", method)  # says why there is none
    is_open = len(granularities) > 1
    raise StateBudgetError(
        f"{type(captured.model).__name__}: {'every granularity' if is_open else f'granularity={granularities[0]!r}'} needs more state "
        f"per context than state_budget={budget:,} bytes: "
        + "; ".join(f"{name} {_listed(by_type)}" for name, by_type in sizes.items())
        + f"; pass a larger state_budget{', ' if is_open else ', another granularity, '}or a smaller state_dtype"
    )


def _listed(by_type: Mapping[torch.dtype | None, int]) -> str:
    shown = {None: "", torch.bfloat16: " in bfloat16", torch.int8: " in int8"}
    return ", ".join(f"{by_type[dtype]:,}{where}" for dtype, where in shown.items())
