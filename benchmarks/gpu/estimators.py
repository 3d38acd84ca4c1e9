"""The estimators that the GPU benchmark checks and times."""

from __future__ import annotations

import torch

import rfc
import rfc.eager

TAYLOR, RFE = rfc.Taylor(order=1), rfc.RFE(order=1)


SKETCHED = rfc.Stored(estimator=rfc.RFE(order=1, sketch=16), differences=torch.int8)


ESTIMATORS: dict[str, rfc.Estimator] = {"Taylor m=1": TAYLOR, "RFE m=1": RFE, "RFE m=1, sketch 16, int8": SKETCHED}


GRAPHS = "CUDA graphs"
