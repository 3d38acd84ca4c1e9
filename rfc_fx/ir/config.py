"""Config: how a model is transformed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rfc.method import Method

Choice = str

Dispatch = Literal["host", "cond"]


Decision = Literal["batch", "per_sample"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a model is transformed."""

    method: Method
    granularity: Choice
    dispatch: Dispatch
    decision: Decision = "batch"
    """Who decides: the batch by its mean, or each sample for itself (`rfc_fx.runtime.per_sample`)."""
    regional: bool = False
    """Repeated blocks are compiled once (`rfc_fx.passes.share_repeats`)."""
    hoist: bool = False
    """What needs no latent is computed ahead of the steps (`rfc_fx.passes.hoist`)."""
    speculate: bool | None = None
    """ESTIMATE runs while the decision travels to the host; None: on CUDA devices, where the state is small."""
    state_budget: int | None = None
    """Bytes that the state of one context may take."""
