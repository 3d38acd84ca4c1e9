"""Methods: an estimator and a schedule. The object is the configuration; it is checked when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rfc.estimate import RFE, Estimator, Reuse, Taylor
from rfc.schedule import RCS, Every, Schedule


@runtime_checkable
class CachingMethod(Protocol):
    """Anything with an estimator and a schedule."""

    @property
    def estimator(self) -> Estimator: ...
    @property
    def schedule(self) -> Schedule: ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """Any estimator with any schedule, e.g. `Method(estimator=Projective(order=2), schedule=RCS(tau=0.2))`."""

    estimator: Estimator
    schedule: Schedule

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator):
            raise TypeError(f"Method: estimator must be an rfc Estimator such as rfc.Taylor(order=1), got {self.estimator!r}")
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"Method: schedule must be an rfc Schedule such as rfc.Every(interval=4), got {self.schedule!r}")


@dataclass(frozen=True, kw_only=True)
class FullCompute:
    """Every step in full: the model itself, with the bookkeeping of a method around it."""

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return Every(interval=1, warmup=1)


@dataclass(frozen=True, kw_only=True)
class FORA:
    """Reuse of attention and MLP outputs between every `interval`-th step (arXiv 2407.01425)."""

    interval: int = 4
    warmup: int = 2

    def __post_init__(self) -> None:
        _ = self.schedule

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class TaylorSeer:
    """Taylor forecast of attention and MLP outputs between every `interval`-th step (arXiv 2503.06923)."""

    interval: int = 4
    order: int = 2
    warmup: int = 2

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return Taylor(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return Every(interval=self.interval, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class RFC:
    """Relational feature caching: RFE of order m with RCS of threshold tau (arXiv 2602.19506, sections 3.2 and 3.3).

    `tau` is the one knob: larger skips more. It has no unit (an accumulated relative L1 error) and differs per model and
    number of steps; calibrate it to the number of full computations (NFC) you can afford. `warmup` leading steps are full.
    """

    tau: float = 0.1
    order: int = 1
    warmup: int = 3

    def __post_init__(self) -> None:
        _ = self.schedule, self.estimator

    @property
    def estimator(self) -> Estimator:
        return RFE(order=self.order)

    @property
    def schedule(self) -> Schedule:
        return RCS(tau=self.tau, warmup=self.warmup, order=self.order)
