"""Feature caching for diffusion transformers: the mathematics, in plain torch.

Estimators forecast a site's output, schedules decide which steps are full, methods pair them, `rfc.eager` runs them by hooks.
"""

from rfc.change import AnchorChange, ProbeChange, StepChange
from rfc.chebyshev import Chebyshev
from rfc.disca import DisCa, Predicted
from rfc.draft import Verified
from rfc.estimate import RFE, Estimator, Projective, Reuse, Taylor, combine
from rfc.forecast import Aligned, Hermite, Newton
from rfc.forecasting import FORA, RFC, HiCache, NewtonRCS, SpeCa, TaylorSeer, TaylorSeerLite
from rfc.generation import Generation
from rfc.log_snr import LogSNR
from rfc.method import CachingMethod, FullCompute, Method
from rfc.predictor import PredictorError
from rfc.presets import PRESETS, preset
from rfc.residual import DeltaDiT, DiCache, FirstBlockCache, MagCache, TeaCache
from rfc.schedule import RCS, Every, Listed, Phased, Placed, Schedule
from rfc.state import Clock
from rfc.storage import Stored
from rfc.toca import DuCa, ToCa
from rfc.tokens import Tokens

__all__ = [
    "FORA",
    "PRESETS",
    "RCS",
    "RFC",
    "RFE",
    "Aligned",
    "AnchorChange",
    "CachingMethod",
    "Chebyshev",
    "Clock",
    "DeltaDiT",
    "DiCache",
    "DisCa",
    "DuCa",
    "Estimator",
    "Every",
    "FirstBlockCache",
    "FullCompute",
    "Generation",
    "Hermite",
    "HiCache",
    "Listed",
    "LogSNR",
    "MagCache",
    "Method",
    "Newton",
    "NewtonRCS",
    "Phased",
    "Placed",
    "Predicted",
    "PredictorError",
    "ProbeChange",
    "Projective",
    "Reuse",
    "Schedule",
    "SpeCa",
    "StepChange",
    "Stored",
    "Taylor",
    "TaylorSeer",
    "TaylorSeerLite",
    "TeaCache",
    "ToCa",
    "Tokens",
    "Verified",
    "combine",
    "preset",
]
