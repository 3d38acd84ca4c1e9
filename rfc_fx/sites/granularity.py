"""Budget: how many bytes of state each granularity and data type would take, and the finest granularity that a budget allows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import get_args

import torch

from rfc.granularity import GranularityName, parse_granularity
from rfc.method import Method
from rfc.state import SlotSpec
from rfc.storage import STORED, stored_anew
from rfc_fx.capture.export import Captured
from rfc_fx.errors import NoSiteError, StateBudgetError
from rfc_fx.ir.config import Choice
from rfc_fx.sites.find import find_sites, watched
from rfc_fx.sites.residual import Found
from rfc_fx.sites.state import state_slots

"""What `transform` may be asked for: what `parse_granularity` takes, or "auto"."""


_UNITS = {"": 1, **{f"{prefix}B": 1000**i for i, prefix in enumerate(("", "K", "M", "G", "T"))}}


_UNITS |= {f"{prefix}iB": 1024**i for i, prefix in enumerate(("K", "M", "G", "T"), start=1)}


def parse_bytes(size: int | str) -> int:
    """Return "2GiB", "500 MB" or a number of bytes as bytes; ValueError for anything else."""
    units = {unit.upper(): factor for unit, factor in _UNITS.items()}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Z]*)\s*", str(size).upper())
    count = 0 if found is None or found[2] not in units or isinstance(size, bool | float) else round(float(found[1]) * units[found[2]])
    if count < 1:
        raise ValueError(f"state_budget must be a number of bytes such as 2147483648, '2GiB' or '500 MB', got {size!r}")
    return count


def state_bytes(slots: Mapping[str, SlotSpec]) -> int:
    """Bytes of the slots."""
    return sum(prod(spec.shape) * spec.dtype.itemsize for spec in slots.values())


def alternatives(captured: Captured, method: Method) -> dict[str, dict[torch.dtype | None, int]]:
    """Bytes of state for every granularity with a site and every type of the differences; None is the method as it is."""
    found: dict[str, dict[torch.dtype | None, int]] = {}
    own = method.granularity
    for granularity in dict.fromkeys((*get_args(GranularityName), *([] if own is None else [own]))):
        ways = {dtype: method if dtype is None else stored_anew(method, dtype) for dtype in (None, *STORED)}
        try:
            sites = _sites(captured, granularity, method).sites
            first = watched(sites, captured)
            found[granularity] = {dtype: state_bytes(state_slots(sites, first, way)) for dtype, way in ways.items()}
        except NoSiteError:
            continue
    return found


def _sites(captured: Captured, granularity: str, method: Method) -> Found:
    return find_sites(
        captured,
        granularity,
        needs_input=method.estimator.needs_input or method.tokens is not None,
        probe=method.probe,
        verifies="VERIFY" in method.schedule.branches,
    )


def chosen_granularity(wanted: Choice | None, method: Method) -> Choice:
    """What was asked for, else the method's own, else "module"; ValueError for what is none, or for another than the method's own."""
    own = method.granularity
    given = wanted or own or "module"
    if given != "auto":
        parse_granularity(given, "auto")
    if own is not None and given != own:
        raise ValueError(f"granularity: {method.name} works on {own!r}, got {given!r}; leave granularity out")
    return given


def sites_within(captured: Captured, wanted: Choice, method: Method, budget: int | None) -> Found:
    """The sites of the wanted granularity; for "auto" of the finest one whose state fits.

    Raises StateBudgetError that lists what each would take when none fits, NoSiteError when nothing can be cached.
    """
    for granularity in get_args(GranularityName) if wanted == "auto" else (wanted,):
        try:
            found = _sites(captured, granularity, method)
        except NoSiteError:
            if wanted != "auto":
                raise
            continue
        if budget is None or state_bytes(state_slots(found.sites, watched(found.sites, captured), method)) <= budget:
            return found
    sizes = alternatives(captured, method)
    if not sizes:
        _sites(captured, "module", method)  # says why there is none
    raise StateBudgetError(
        f"{type(captured.model).__name__}: granularity={wanted!r} needs more state per context than state_budget={budget:,} bytes: "
        + "; ".join(f"{name} {_listed(by_type)}" for name, by_type in sizes.items())
        + f"; pass a larger state_budget, a smaller state_dtype{'' if wanted == 'auto' else ', granularity=' + repr('auto')}"
    )


def _listed(by_type: Mapping[torch.dtype | None, int]) -> str:
    shown = {None: "", torch.bfloat16: " in bfloat16", torch.int8: " in int8"}
    return ", ".join(f"{by_type[dtype]:,}{where}" for dtype, where in shown.items())
