"""The methods that the GPU benchmark checks and times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import rfc
from rfc.method import Method

TAYLOR, RFE = rfc.Taylor(order=1), rfc.RFE(order=1)


SKETCHED = rfc.Stored(estimator=rfc.RFE(order=1, sketch=16), differences=torch.int8)


ESTIMATORS: dict[str, rfc.Estimator] = {"Taylor m=1": TAYLOR, "RFE m=1": RFE, "RFE m=1, sketch 16, int8": SKETCHED}
"""With a schedule that reads its error in every step, and computes at equal gaps."""


def _log_snr(steps: int, nfc: int, scheduler: Any = None) -> Method:
    from diffusers import DDIMScheduler

    return rfc.LogSNR(scheduler or DDIMScheduler(), steps, nfc)


PLACED: dict[str, Callable[[int, int], Method]] = {"LogSNR": _log_snr}
"""With full steps of their own, as many: no step reads anything."""


def method(name: str, schedule: rfc.RCS, steps: int, nfc: int) -> Method:
    """The method of that name with so many full steps."""
    return PLACED[name](steps, nfc) if name in PLACED else rfc.Method(estimator=ESTIMATORS[name], schedule=schedule)
