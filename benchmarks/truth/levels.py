"""Noise levels: log(alpha / sigma) along a model's own time, and the spacings of n levels that samplers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Reals = NDArray[np.float64]

LAST_FLOW_TIME = 1.0
"""The smallest time of 1000 that a flow is evaluated at."""


@dataclass(frozen=True)
class Levels:
    """The noise levels of a model in the scheduler's time t, from the first (all noise) to the last."""

    is_flow: bool
    first: float
    last: float
    known: Reals
    """lambda = log(alpha / sigma) at t = 0, 1, ...; of a flow none, for alpha = 1 - t/1000 and sigma = t/1000."""

    @classmethod
    def of(cls, scheduler: Any) -> Levels:
        """Those of a scheduler of diffusers."""
        cumulative = getattr(scheduler, "alphas_cumprod", None)
        if cumulative is None:
            return cls(True, 1000.0, LAST_FLOW_TIME, np.zeros(0))
        squared = cumulative.double().numpy()
        return cls(False, float(len(squared) - 1), 0.0, np.log(squared / (1 - squared)) / 2)

    def lambdas(self, times: Reals) -> Reals:
        """log(alpha / sigma) at times; -inf where all is noise."""
        if not self.is_flow:
            return np.interp(times, np.arange(len(self.known)), self.known)
        share = np.asarray(times, dtype=np.float64) / 1000
        with np.errstate(divide="ignore"):
            levels: Reals = np.log1p(-share) - np.log(share)
        return levels

    def times(self, lambdas: Reals) -> Reals:
        """The reverse."""
        if not self.is_flow:
            return np.interp(-np.asarray(lambdas), -self.known, np.arange(len(self.known)))
        times: Reals = 1000 / (1 + np.exp(np.asarray(lambdas, dtype=np.float64)))
        return times

    def sigmas(self, times: Reals) -> Reals:
        """As diffusers' schedulers have them: sigma / alpha, of a flow the share of noise."""
        if self.is_flow:
            return np.asarray(times, dtype=np.float64) / 1000
        ratios: Reals = np.exp(-self.lambdas(times))
        return ratios


def uniform(levels: Levels, n: int) -> Reals:
    """Equal steps of time; no level after the last is left out."""
    return np.linspace(levels.first, 0.0, n + 1)[:-1]


def shifted(levels: Levels, n: int, shift: float = 3.0) -> Reals:
    """Equal steps of time, moved towards the noise as SD3's and FLUX's users have them: s t / (1 + (s - 1) t)."""
    share = uniform(levels, n) / levels.first
    return levels.first * shift * share / (1 + (shift - 1) * share)


def log_snr(levels: Levels, n: int, most: float = np.inf) -> Reals:
    """Equal steps of lambda between the first and the last level, the inner ones within +-most; sigmas in geometric progression."""
    low, high = levels.lambdas(np.array([levels.first, levels.last]))
    low, high = max(low, -most, -6.0), min(high, most)
    return np.concatenate([[levels.first], levels.times(np.linspace(low, high, n)[1:])])


def within_three(levels: Levels, n: int) -> Reals:
    """The same within +-3."""
    return log_snr(levels, n, 3.0)


def karras(levels: Levels, n: int, rho: float = 7.0) -> Reals:
    """sigma^(1/7) in equal steps (arXiv 2206.00364), sigma as the scheduler has it."""
    high, low = levels.sigmas(np.array([levels.first, levels.last])) ** (1 / rho)
    return _times(levels, np.linspace(high, low, n) ** rho)


def exponential(levels: Levels, n: int) -> Reals:
    """log sigma in equal steps; the same as `log_snr` but for flows."""
    high, low = np.log(levels.sigmas(np.array([levels.first, levels.last])))
    return _times(levels, np.exp(np.linspace(high, low, n)))


def beta_spaced(levels: Levels, n: int) -> Reals:
    """Quantiles of Beta(0.6, 0.6) in time, denser at both ends (arXiv 2407.12173)."""
    shares: Reals = beta.ppf(np.linspace(1, 0, n), 0.6, 0.6)
    return np.maximum(levels.first * shares, levels.last)


def _times(levels: Levels, sigmas: Reals) -> Reals:
    return 1000 * sigmas if levels.is_flow else levels.times(-np.log(sigmas))


SPACINGS: dict[str, Callable[[Levels, int], Reals]] = {
    "uniform": uniform,
    "shift 3": shifted,
    "log-SNR": log_snr,
    "log-SNR within 3": within_three,
    "Karras": karras,
    "exponential": exponential,
    "beta": beta_spaced,
}
"""By name: the times of n levels, from noise to picture; a last step to the picture follows them."""
