"""Methods: an estimator, a schedule, and where they apply. The object is the configuration; it is checked when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from rfc.estimators.base import Estimator
from rfc.estimators.taylor import Reuse
from rfc.schedules.base import Schedule, checked_count
from rfc.schedules.fixed import Every
from rfc.token_selection import Tokens, check_tokens


@runtime_checkable
class CachingMethod(Protocol):
    """Anything with an estimator and a schedule; where it applies is `placement`."""

    @property
    def estimator(self) -> Estimator: ...
    @property
    def schedule(self) -> Schedule: ...


class Placement(NamedTuple):
    """Where a method applies."""

    granularity: str | None
    """What one estimate stands for ("module", "block", "stack", "output", "blocks[1:]"); None leaves the choice open."""
    probe: int
    """Leading blocks that every step computes, so that what they add to the stream is the input I; 0: I is the first site's own."""
    tokens: Tokens | None = None
    """Which tokens PARTIAL steps compute; None for a schedule that has none."""


def placement(method: CachingMethod) -> Placement:
    """Where the method applies: its `granularity`, `probe` and `tokens`, where it has them."""
    return Placement(getattr(method, "granularity", None), getattr(method, "probe", 0), getattr(method, "tokens", None))


@dataclass(frozen=True, kw_only=True)
class Method:
    """Any estimator with any schedule, e.g. `Method(estimator=Projective(order=2), schedule=RCS(tau=0.2))`; see `Placement`."""

    estimator: Estimator
    schedule: Schedule
    granularity: str | None = None
    probe: int = 0
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator):
            raise TypeError(f"Method: estimator must be an rfc Estimator such as rfc.Taylor(order=1), got {self.estimator!r}")
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"Method: schedule must be an rfc Schedule such as rfc.Every(interval=4), got {self.schedule!r}")
        checked_count("Method", "probe", self.probe, 0)
        check_tokens(self.estimator, self.schedule.phases, self.tokens)


@dataclass(frozen=True, kw_only=True)
class FullCompute:
    """Every step in full: the model itself, with the bookkeeping of a method around it."""

    @property
    def estimator(self) -> Estimator:
        return Reuse()

    @property
    def schedule(self) -> Schedule:
        return Every(interval=1, warmup=1)
