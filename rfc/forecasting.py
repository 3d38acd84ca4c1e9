"""Methods that forecast the output of every site, or of the last block: FORA, TaylorSeer and its kin, SpeCa, RFC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from rfc.draft import Verified
from rfc.estimate import RFE, Estimator, Reuse, Taylor
from rfc.forecast import Hermite, Newton
from rfc.schedule import RCS, Every, Schedule


class Checked(ABC):
    """A method whose settings are checked when it is made, by making what they are for."""

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    @abstractmethod
    def estimator(self) -> Estimator: ...

    @property
    @abstractmethod
    def schedule(self) -> Schedule: ...


class EveryNth(Checked):
    """What methods with an `interval` and leading full steps (`warmup`) share; their fields are their own."""

    interval: int
    warmup: int

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)


class Reusing:
    """What methods share that keep the last output or residual as it is."""

    @property
    def estimator(self) -> Estimator:
        return Reuse()


@dataclass(frozen=True, kw_only=True)
class FORA(Reusing, EveryNth):
    """Reuse of attention and MLP outputs between every `interval`-th step (arXiv 2407.01425)."""

    interval: int = 4
    warmup: int = 2


@dataclass(frozen=True, kw_only=True)
class TaylorSeer(EveryNth):
    """Taylor forecast of attention and MLP outputs between every `interval`-th step (arXiv 2503.06923)."""

    interval: int = 4
    order: int = 2
    warmup: int = 2

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)


@dataclass(frozen=True, kw_only=True)
class HiCache(EveryNth):
    """TaylorSeer with scaled Hermite polynomials (arXiv 2508.16984)."""

    interval: int = 4
    order: int = 2
    sigma: float = 0.5
    warmup: int = 2

    @property
    def estimator(self) -> Estimator:
        return Hermite(order=self.order, sigma=self.sigma)


@dataclass(frozen=True, kw_only=True)
class TaylorSeerLite(EveryNth):
    """TaylorSeer of the last block's output alone: a skipped step runs no block (arXiv 2503.06923, the Lite form of its code)."""

    interval: int = 4
    order: int = 2
    warmup: int = 2

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)

    @property
    def granularity(self) -> str:
        return "output"


@dataclass(frozen=True, kw_only=True)
class SpeCa(Checked):
    """Taylor drafts, of which the last block is verified; a bad one makes the next step full (arXiv 2509.11628; `Verified`)."""

    base: float = 0.1
    decay: float = 0.01
    floor: float = 0.01
    min_drafts: int = 2
    max_drafts: int = 5
    order: int = 4
    enhanced: int = 3
    steps: int = 50

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return Verified(
            base=self.base,
            decay=self.decay,
            floor=self.floor,
            min_drafts=self.min_drafts,
            max_drafts=self.max_drafts,
            enhanced=self.enhanced,
            steps=self.steps,
        )


@dataclass(frozen=True, kw_only=True)
class RFC(Checked):
    """Relational feature caching: RFE of order m with RCS of threshold tau (arXiv 2602.19506, sections 3.2 and 3.3).

    `tau` is the one knob: larger skips more. It has no unit (an accumulated relative L1 error) and differs per model and
    number of steps; calibrate it to the number of full computations (NFC) you can afford. `warmup` leading steps are full.
    """

    tau: float = 0.1
    order: int = 1
    warmup: int = 3

    @property
    def estimator(self) -> Estimator:
        return RFE(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return RCS(tau=self.tau, warmup=self.warmup, order=self.order)


@dataclass(frozen=True, kw_only=True)
class NewtonRCS(Checked):
    """RCS decides from the first step on; Newton's polynomial through the full steps it chose is the forecast. Not in the papers.

    What it takes from RFC is the schedule (arXiv 2602.19506, section 3.3), with one leading full step in place of several neighbouring
    ones: differences over a gap of one step say little about the many steps after it. In the place of the estimate stands the polynomial
    that is exact over the unequal gaps RCS leaves (`Newton`). A skipped step needs no site's input, so it is one pass over the state.
    `tau` as in `RFC`. Measured: a third of the error of TaylorSeer on one model, more than that on another (README, "How good"):
    a polynomial does not know how far the input has moved, `RFE` does. Try it on yours before relying on it.
    """

    tau: float = 0.15
    order: int = 2
    warmup: int = 1

    @property
    def estimator(self) -> Estimator:
        return Newton(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return RCS(tau=self.tau, warmup=self.warmup)
