"""Feature caching for diffusion transformers: the mathematics, in plain torch.

Estimators forecast a site's output, schedules decide which steps are full, methods pair them, `rfc.eager.model` runs them by hooks.
"""

from rfc.eager.recording import magnitude_ratios
from rfc.estimators.adaptive import AdaptiveNewton
from rfc.estimators.aligned import Aligned
from rfc.estimators.base import Estimator, combine
from rfc.estimators.linear_prediction import LinearPrediction
from rfc.estimators.newton import Newton
from rfc.estimators.predicted import Predicted
from rfc.estimators.predictor_corrector import PredictorCorrector
from rfc.estimators.relational import RFE, Projective
from rfc.estimators.ridge import RidgeChebyshev
from rfc.estimators.taylor import Hermite, Reuse, Taylor
from rfc.method import Method
from rfc.placement.chebyshev import Chebyshev, ChebyshevPlaced
from rfc.placement.fitted import Recorded, fitted
from rfc.placement.growing import GrowingWindow
from rfc.placement.log_snr import LogSNR, LogSNRPlaced
from rfc.placement.magcache import MagCache, MagnitudePlaced
from rfc.placement.noise_levels import noise_levels
from rfc.placement.output_gains import output_gains
from rfc.placement.refined import refined
from rfc.placement.weighted import Weighted
from rfc.predictor import PredictorError
from rfc.presets import PRESETS, preset
from rfc.published import (
    FORA,
    RFC,
    DeltaDiT,
    DiCache,
    DisCa,
    DuCa,
    FirstBlockCache,
    FoCa,
    FullCompute,
    HiCache,
    NewtonRCS,
    SpeCa,
    TaylorSeer,
    TaylorSeerLite,
    TeaCache,
    ToCa,
)
from rfc.record import Record
from rfc.schedules.base import Schedule
from rfc.schedules.change import AnchorChange, ProbeChange, StepChange
from rfc.schedules.fixed import Every, Listed, Phased, Placed
from rfc.schedules.output_change import OutputChange
from rfc.schedules.rcs import RCS
from rfc.schedules.spectral_change import SpectralChange
from rfc.schedules.verified import Verified
from rfc.state import Clock
from rfc.storage import Stored
from rfc.token_selection import Tokens
from rfc.whole_model import EasyCache, SeaCache, Spectrum

__all__ = [
    "FORA",
    "PRESETS",
    "RCS",
    "RFC",
    "RFE",
    "AdaptiveNewton",
    "Aligned",
    "AnchorChange",
    "Chebyshev",
    "ChebyshevPlaced",
    "Clock",
    "DeltaDiT",
    "DiCache",
    "DisCa",
    "DuCa",
    "EasyCache",
    "Estimator",
    "Every",
    "FirstBlockCache",
    "FoCa",
    "FullCompute",
    "GrowingWindow",
    "Hermite",
    "HiCache",
    "LinearPrediction",
    "Listed",
    "LogSNR",
    "LogSNRPlaced",
    "MagCache",
    "MagnitudePlaced",
    "Method",
    "Newton",
    "NewtonRCS",
    "OutputChange",
    "Phased",
    "Placed",
    "Predicted",
    "PredictorCorrector",
    "PredictorError",
    "ProbeChange",
    "Projective",
    "Record",
    "Recorded",
    "Reuse",
    "RidgeChebyshev",
    "Schedule",
    "SeaCache",
    "SpeCa",
    "SpectralChange",
    "Spectrum",
    "StepChange",
    "Stored",
    "Taylor",
    "TaylorSeer",
    "TaylorSeerLite",
    "TeaCache",
    "ToCa",
    "Tokens",
    "Verified",
    "Weighted",
    "combine",
    "fitted",
    "magnitude_ratios",
    "noise_levels",
    "output_gains",
    "preset",
    "refined",
]
