"""Feature caching for diffusion transformers: the mathematics, in plain torch.

Estimators forecast a site's output, schedules decide which steps are full, methods pair them, `rfc.eager` runs them by hooks.
"""

from rfc.estimate import RFE, Estimator, Projective, Reuse, Taylor, combine
from rfc.generation import Generation
from rfc.method import FORA, RFC, CachingMethod, FullCompute, Method, TaylorSeer
from rfc.schedule import RCS, Every, Listed, Schedule
from rfc.state import Clock
from rfc.storage import Stored

__all__ = [
    "FORA",
    "RCS",
    "RFC",
    "RFE",
    "CachingMethod",
    "Clock",
    "Estimator",
    "Every",
    "FullCompute",
    "Generation",
    "Listed",
    "Method",
    "Projective",
    "Reuse",
    "Schedule",
    "Stored",
    "Taylor",
    "TaylorSeer",
    "combine",
]
