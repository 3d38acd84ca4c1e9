"""Method: an estimator, a schedule, and where they apply. The object is the configuration; it is checked when made."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from rfc.estimators.base import Estimator
from rfc.granularity import WHOLE, parse_granularity
from rfc.schedules.base import Schedule, checked_count
from rfc.token_selection import Tokens, check_tokens


@dataclass(frozen=True, kw_only=True, repr=False)
class Method:
    """Any estimator with any schedule, e.g. `Method(estimator=Projective(order=2), schedule=RCS(tau=0.2))`.

    The published methods (`rfc.RFC`, `rfc.TaylorSeer`, ...) are functions that return one. Methods are equal where all of this is.
    """

    estimator: Estimator
    schedule: Schedule
    granularity: str | None = None
    """Extent of one estimate ("module", "block", "stack", "output", "prediction", "blocks[1:]"); None leaves the choice open."""
    default_granularity: str | None = None
    """Extent where that choice is open and nobody made it; None: "module"."""
    probe: int = 0
    """Leading blocks that every step computes, so that what they add to the stream is the input I; 0: I is the first site's own."""
    tokens: Tokens | None = None
    """Which tokens PARTIAL steps compute; None for a schedule that has none."""
    name: str = "Method"
    """As it stands in tables and messages."""

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator):
            raise TypeError(f"Method: estimator must be an rfc Estimator such as rfc.Taylor(order=1), got {self.estimator!r}")
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"Method: schedule must be an rfc Schedule such as rfc.Every(interval=4), got {self.schedule!r}")
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"Method: name must be a text such as 'TaylorSeer', got {self.name!r}")
        if self.estimator.num_weights != self.schedule.num_weights:
            raise ValueError(
                f"Method: {type(self.estimator).__name__} needs {self.estimator.num_weights} weights for each step, and "
                f"{type(self.schedule).__name__} has {self.schedule.num_weights}; rfc.LinearPrediction(order=m) goes with a rfc.Weighted "
                "schedule of m numbers a step, rfc.AdaptiveNewton with rfc.LogSNR of a flow"
            )
        for granularity in (self.granularity, self.default_granularity):
            if granularity is not None:
                parse_granularity(granularity)
        checked_count("Method", "probe", self.probe, 0)
        check_tokens(self.estimator, self.schedule.branches, self.tokens)

    def __repr__(self) -> str:
        return expression(self)

    def __str__(self) -> str:
        """Name and settings that are not at their defaults, such as "RFC(tau=0.2)", for tables and messages; long lists are left out."""
        parts = [expression(part) for part in (self.schedule, self.estimator)]
        if self.name == "Method":
            return f"Method({', '.join(text if len(text) <= 90 else text.partition('(')[0] for text in parts)})"
        schedule, estimator = (text.partition("(")[2].removesuffix(")") for text in parts)
        settings = [schedule] if estimator in schedule else [schedule, estimator]  # RFC: both have one order
        return f"{self.name}({', '.join(text if len(text) <= 90 else '...' for text in settings if text)})"

    def within(self, granularity: str) -> Method:
        """The method where one estimate stands for so much: full steps correct what leaves all blocks, not what other blocks read.

        ValueError for less than all blocks and an estimator that is nothing without its corrections.
        """
        if granularity in ("stack", *WHOLE) or not self.estimator.corrects:
            return self
        return replace(self, estimator=self.estimator.uncorrected())

    def with_schedule(self, schedule: Schedule) -> Method:
        """The method with another schedule."""
        return replace(self, schedule=schedule)

    def with_threshold(self, threshold: float) -> Method:
        """The method with another threshold of its schedule; ValueError for one that decides without."""
        return self.with_schedule(self.schedule.with_threshold(threshold))

    def with_nfc(self, nfc: int | float | None) -> Method:
        """The method with that many full steps, or that share of the steps (None: its default); ValueError for one that places none."""
        return self.with_schedule(self.schedule.with_nfc(nfc))

    def exercised(self) -> Method:
        """The method with a schedule that reaches every phase within a few steps, on the same programs."""
        return self.with_schedule(self.schedule.exercised())


def programs_of(method: Method) -> tuple[Any, ...]:
    """Parts of a method that its programs are made from: methods of equal parts run on the same programs."""
    return method.estimator, method.schedule.in_graph, method.granularity, method.default_granularity, method.probe, method.tokens


def expression(value: Any) -> str:
    """The call that makes a frozen dataclass, without the settings that are at their defaults; the repr of anything else."""
    if not isinstance(value, Method) and not (is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.repr):  # type: ignore[attr-defined]
        return repr(value)
    settings = {field.name: getattr(value, field.name) for field in fields(value) if field.repr}
    defaults = {field.name: field.default for field in fields(value)}
    shown = (f"{name}={expression(setting)}" for name, setting in settings.items() if setting != defaults[name])
    return f"{type(value).__name__}({', '.join(shown)})"
