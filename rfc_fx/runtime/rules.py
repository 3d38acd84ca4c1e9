"""Rules: the method of a model, and its rule for the steps of one generation."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from rfc.bookkeeping import Rule, continues, left_out
from rfc.conditioning import is_uncond
from rfc.method import Method
from rfc.placement.base import PlacedByCount
from rfc.placement.weighted import Weighted
from rfc.schedules.base import Schedule
from rfc_fx.runtime.context import Context
from rfc_fx.runtime.generation import Generation
from rfc_fx.runtime.timetable import Timetable
from rfc_fx.runtime.warnings import Warned

log = logging.getLogger("rfc_fx")


class Rules:
    """Holds the method of a model; another one of the same programs may be set between steps."""

    def __init__(self, method: Method, warned: Warned) -> None:
        self._warned = warned
        self._numbers: dict[torch.device, dict[str, Tensor]] = {}
        self.method = method

    @property
    def method(self) -> Method:
        """The caching method."""
        return self._method

    @method.setter
    def method(self, method: Method) -> None:
        self._method = method
        self._is_bound = method.schedule.is_bound
        self._warned.can_skip = not self._is_bound or method.schedule.can_skip(1000)
        fresh = method.schedule.numbers()
        for numbers in self._numbers.values():
            for name, tensor in numbers.items():
                tensor.copy_(fresh[name])
        self._rules = {"": Rule(method.schedule, self.numbers_on(torch.device("cpu")))}
        self._is_by_pass = method.schedule.for_pass("") is not method.schedule

    def numbers_on(self, device: torch.device) -> dict[str, Tensor]:
        """The schedule's thresholds, at fixed addresses."""
        if device not in self._numbers:
            with torch.inference_mode(False):
                self._numbers[device] = {name: t.to(device) for name, t in self._method.schedule.numbers().items()}
        return self._numbers[device]

    def for_tokens(self, device: torch.device) -> Mapping[str, Tensor]:
        """What the host's programs read of them."""
        return {} if self._method.tokens is None else self.numbers_on(device)

    def of(self, generation: Generation, context: Context) -> Rule:
        """The rule of a context: for its generation's own number of steps and noise levels where its timesteps are known."""
        timetable, method = generation.timetable, self._method
        name = context.name if self._is_by_pass else ""
        if timetable is None or context.at.step is None:
            if not self._is_bound:
                self._warned.of_unknown_levels()
            if name not in self._rules:
                schedule = method.schedule.for_pass(name)
                self._rules[name] = Rule(schedule, schedule.numbers())
            return self._rules[name]
        if generation.rules[0] is not method:
            generation.rules = method, {}
        if (rule := generation.rules[1].get(name)) is None:
            own = method.schedule.for_pass(name)
            schedule = self._bound(own, timetable)
            rule = self._rules[""] if schedule is method.schedule else Rule(schedule, schedule.numbers())
            generation.rules[1][name] = rule
        return rule

    def ended(self, generation: Generation) -> None:
        """Say what was wrong with a generation that has ended."""
        for context in generation:
            schedule = context.schedule or self.of(generation, context).schedule
            self._warned.at_the_end(context.record(), schedule, is_known=generation.timetable is not None)
        names = [context.name for context in generation if context.record().step]
        if self._is_by_pass and names and not any(map(is_uncond, names)):
            self._warned.of_passes(names)

    def _bound(self, schedule: Schedule, timetable: Timetable) -> Schedule:
        if timetable.share < 1 and isinstance(schedule, PlacedByCount) and isinstance(schedule.count, int):  # one of several denoisers
            schedule = schedule.with_nfc(max(1, round(schedule.count * timetable.share)))
        if schedule.is_bound and not schedule.is_placed:
            return schedule
        try:
            bound = schedule.bound(timetable.remaining, timetable.levels())
        except ValueError as error:
            log.info("%s", error)
            if not schedule.is_bound:
                self._warned.of_unknown_levels()
            return schedule
        if isinstance(schedule, Weighted) and bound is not schedule:
            self._warned.of_other_levels(schedule, bound, timetable.remaining)
        self._warned.of_few_steps(bound, timetable.remaining)
        return bound


def place(generation: Generation, context: Context, rule: Rule) -> None:
    """Hold a context against the timetable: after calls that it was not part of, its step is full."""
    at, book, before = context.at, context.book, context.before
    if at.step is None:
        return
    is_next = before is None or at.step - 1 == before.step
    if is_next and continues(book, at.timestep, generation.sign) and (not rule.schedule.is_placed or book.number == at.step):
        return
    context.book = left_out(book, at.step if rule.schedule.is_placed else 0)
