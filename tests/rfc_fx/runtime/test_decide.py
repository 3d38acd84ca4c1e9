"""The decision of a step and the order of its programs, in any sequence of generations, contexts, resets, failures and changed models.

The driver runs programs that compute nothing: they note what they were called with. The state holds which step wrote it.
"""

import warnings
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

import rfc
from rfc.bookkeeping import Book, Rule, clock_values
from rfc.state import SlotSpec
from rfc_fx.errors import RFCError
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.plan import Plan
from rfc_fx.ir.program import CLOCK, Argument
from rfc_fx.runtime import calls
from rfc_fx.runtime.calls import Call
from rfc_fx.runtime.decide import MAX_RESTARTS, Facts, Reason, Restart, bounded, decide
from rfc_fx.runtime.driver import Driver
from rfc_fx.runtime.generations import Generations as Owner
from rfc_fx.runtime.moments import Follows, Moments

# ---- programs that note how they are called --------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """One run of a program."""

    phase: str
    version: int
    """Of the model that the program was made from."""
    values: dict[str, Tensor]


@dataclass(frozen=True)
class NotingProgram:
    phase: str
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]
    run: Callable[..., Any]
    batched: None = None


class NotingSet:
    """PREFIX where the schedule watches, every phase of it, and INVARIANT and TIMESTEP where values are hoisted."""

    device = torch.device("cpu")
    timestep = "t"
    latent = "x"
    clock_size = 3
    counts_itself = False
    layout = Layout({"written": SlotSpec((2,), torch.float32)})
    plan = Plan([], [], 8, 1, 1)

    def __init__(self, world: "World", version: int) -> None:
        self.world, self.version = world, version
        self.placeholders: list[Argument] = [("input", name) for name in ("x", "t", "y")]
        schedule, hoists = world.schedule, world.hoists
        carries = (("carry", "inv"), ("carry", "mod")) if hoists else ()
        self.programs: dict[str, NotingProgram] = {}
        if hoists:
            self._add("INVARIANT", (("input", "y"),), ("carry:inv",))
            self._add("TIMESTEP", (("input", "t"),), ("carry:mod",))
        if schedule.watches:
            self._add("PREFIX", (("input", "t"), CLOCK), ("decision",))
        for phase in schedule.branches:
            extra = ("decision",) if phase == "VERIFY" else ()
            self._add(phase, (("input", "x"), ("state", "written"), CLOCK, *carries), ("output:0", *extra))

    def _add(self, phase: str, arguments: tuple[Any, ...], results: tuple[str, ...]) -> None:
        def run(*tensors: Tensor) -> list[Tensor]:
            values = {name: tensor.clone() for (_, name), tensor in zip(arguments, tensors, strict=True)}
            self.world.note(Ran(phase, self.version, values))
            if phase == "FULL":
                tensors[1].copy_(tensors[0])
            made = {"carry:inv": values.get("y", 0) + self.world.weight, "carry:mod": values.get("t"), "output:0": values.get("x")}
            error = torch.tensor([self.world.eps, *([float(values["t"])] * 2 if phase == "PREFIX" else [])])
            return [error if name == "decision" else made[name] for name in results]  # type: ignore[misc]

        self.programs[phase] = NotingProgram(phase, arguments, results, run)

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        return leaves

    def unflatten(self, outputs: Any) -> Any:
        return tuple(outputs)


@dataclass
class World:
    """The model as it is, its programs, and what they noted in the present step."""

    schedule: rfc.Schedule
    hoists: bool
    version: int = 0
    weight: float = 0.0
    """A value that programs read where it lies, as they do weights."""
    eps: float = 0.0
    ran: list[Ran] = field(default_factory=list)
    fails_at: int | None = None
    """The run of the present step that fails."""
    held: NotingSet | None = None
    owner: Owner = field(default_factory=lambda: Owner("Model"))

    def note(self, ran: Ran) -> None:
        if self.fails_at == len(self.ran):
            raise KeyboardInterrupt
        self.ran.append(ran)

    def recognise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        self.held = self.held or NotingSet(self, self.version)
        x, t, y = args
        return Call(self.held.version, self.held, [x, t, y], {"y": y}, t)

    def has_changed(self) -> bool:
        return self.held is not None and self.held.version != self.version

    def is_touched(self) -> bool:
        return False

    @property
    def is_empty(self) -> bool:
        return False

    def visitors(self) -> tuple[list[str], None]:
        return [], None

    def drop(self) -> None:
        assert self.held is not None
        self.owner.drop([self.held.version])
        self.held = None


SCHEDULES: dict[str, rfc.Schedule] = {
    "every, one leading step": rfc.Every(interval=3, warmup=1),
    "every, two leading steps": rfc.Every(interval=4, warmup=2),
    "listed": rfc.Listed(full_steps=[0, 1, 4]),
    "data": rfc.RCS(tau=0.5, warmup=2),
    "data, one leading step": rfc.RCS(tau=0.5, warmup=1),
    "lagged": rfc.RCS(tau=0.5, warmup=2, lagged=True),
    "verified": rfc.SpeCa().schedule,
}

ERRORS = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.9]), min_size=3, max_size=7)

CHANGES = st.sampled_from(["nothing", "weights", "model", "prompt"])

LEAST = 3
"""Timesteps after which a generation that nobody ended is told from the next one, whatever the direction."""


@dataclass
class Truth:
    """What a context has truly done in its generation, as the test knows it."""

    generation: int
    steps: int = 0
    weight: float = 0.0
    """As it was when the generation began."""
    full: list[int] = field(default_factory=list)
    """Numbers of its full steps."""
    total: float = 0.0
    """The error that counts since the last full one."""

    def phase(self, schedule: rfc.Schedule, eps: float) -> str | None:
        """What the schedule says of the coming step; None for one with more than two phases."""
        match schedule:
            case rfc.Every():
                full = not self.full or self.steps < schedule.warmup or self.steps - self.full[-1] >= schedule.interval
            case rfc.Listed():
                full = self.steps in schedule.full_steps
            case rfc.RCS():
                known = 0.0 if schedule.is_lagged or not self.full else eps
                full = self.steps < schedule.warmup or self.total + known > schedule.tau
                self.total = 0.0 if full else self.total + eps
            case _:
                return None
        return "FULL" if full else "ESTIMATE"


class Generations(RuleBasedStateMachine):
    """A sampler's loops over two contexts, with all that may happen between and within them."""

    @initialize(
        name=st.sampled_from(sorted(SCHEDULES)),
        hoists=st.booleans(),
        speculates=st.booleans(),
        rises=st.booleans(),
        is_seen=st.booleans(),
    )
    def begin(self, name: str, hoists: bool, speculates: bool, rises: bool, is_seen: bool) -> None:
        schedule = SCHEDULES[name]
        self.is_blind = not is_seen and bool(schedule.watches)
        """The timestep lies on a device: it comes to the host with the decision."""
        self.needs_reset = self.is_blind and schedule.is_lagged
        self.rises = rises and not self.needs_reset
        self.world = World(schedule, hoists)
        method = rfc.Method(estimator=rfc.Reuse(), schedule=schedule)
        self.driver = Driver("Model", method, self.world, self.world.owner, speculates)
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.object(calls, "on_host", return_value=is_seen))
        # what is in doubt: test_generations.py
        self.patches.enter_context(mock.patch.multiple(Moments, follows=lambda *_, **__: Follows(), note=lambda *_: None))
        if self.is_blind:
            self.driver._seen_timestep = lambda *_: None  # type: ignore[method-assign]
        self.truths: dict[str, Truth] = {}
        self.generations = 0
        self.in_order = True
        self.direction_is_known = False
        self._new_loop()

    def teardown(self) -> None:
        if hasattr(self, "patches"):
            self.patches.close()

    def _new_loop(self, other_prompt: bool = True) -> None:
        self.position, self.distinct = 0, 0
        if other_prompt:
            self.y = torch.tensor([float(self.generations)])
        self.restarted: set[str] = set()
        """Contexts that have begun in this loop."""

    def _timestep(self, position: int) -> float:
        """Exact in float32."""
        return position / 64 if self.rises else 1 - position / 64

    # ---- what happens ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.position < 30)
    @rule(errors=ERRORS, guidance=st.booleans(), repeats=st.booleans())
    def steps(self, errors: list[float], guidance: bool, repeats: bool) -> None:
        """Steps of the sampler; guidance may be off after the leading ones; a sampler of second order calls twice at a timestep."""
        for eps in errors:
            is_guided = guidance or self.distinct < LEAST or self.needs_reset  # a prepared step that was left out raises, one step late
            for name in ("cond", "uncond") if is_guided else ("cond",):
                for _ in range(1 + (repeats and self.distinct > 0 and not self.needs_reset)):
                    self._call(name, eps)
            self.position, self.distinct = self.position + 1, self.distinct + 1

    @rule(fails_at=st.none() | st.integers(0, 4), name=st.sampled_from(["cond", "uncond"]))
    def end(self, fails_at: int | None, name: str) -> None:
        """Somebody ends all generations, as diffusers does, at any point: also after a program failed or the loop was interrupted."""
        if fails_at is not None:
            self.world.fails_at = fails_at
            with suppress(KeyboardInterrupt):
                self._call(name, 0.1)
            self.world.fails_at = None
        self.driver.generations.current().restart()
        self.driver.may_have_changed = True
        self.direction_is_known = False
        self._new_loop()

    @precondition(lambda self: self.distinct >= LEAST and not self.needs_reset)
    @rule(what=CHANGES, errors=ERRORS)
    def next_loop(self, what: str, errors: list[float]) -> None:
        """Nobody says that a generation has ended: the timestep does, whatever has changed between the two."""
        self.direction_is_known = True
        self._new_loop(other_prompt=what == "prompt")
        self.change(what)
        self.steps(errors, guidance=True, repeats=False)

    @rule(what=CHANGES)
    def change(self, what: str) -> None:
        """Weights change in place, which no fingerprint shows: hoisted values may follow from the next generation on."""
        self.world.version += what == "model"
        self.world.weight += what == "weights"
        if what == "prompt":
            self.y = self.y + 0.5

    @rule(order=st.sampled_from(["none", "right", "shifted", "short"]))
    def prepare(self, order: str) -> None:
        if order == "shifted" and self.needs_reset:
            return  # which raises, one step late
        coming = [self._timestep(position + (order == "shifted")) for position in range(3 if order == "short" else 40)]
        self.driver.generations.known.prepare(None if order == "none" else torch.tensor(coming))

    # ---- one call, and what has to hold ------------------------------------------------------------------------------

    def _call(self, name: str, eps: float) -> None:
        if name not in self.restarted:
            self.generations += 1
            self.truths[name] = Truth(self.generations, weight=self.world.weight)
            self.restarted.add(name)
        truth, world = self.truths[name], self.world
        world.ran, world.eps = [], eps
        x, t = torch.tensor([float(truth.generation), float(truth.steps)]), torch.tensor([self._timestep(self.position)])
        with self.driver.generations.named(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            order, results = self.driver.step((x, t, self.y), {}), None
            try:
                while True:
                    run, arguments = order.send(results)
                    try:
                        results = run(*arguments)
                    except BaseException:
                        order.close()
                        raise
            except StopIteration as done:
                (output,) = done.value
        assert torch.equal(output, x)
        context = self.driver.generations.current().latest
        assert context is not None
        self._check(context.book, truth, float(t), eps)

    def _check(self, book: Book, truth: Truth, timestep: float, eps: float) -> None:
        phase, ran = book.phases[-1], self.world.ran
        phases = [each.phase for each in ran]
        assert phases.count("FULL") == (phase == "FULL")  # at most once, whatever restarted
        last = next(each for each in reversed(ran) if each.phase == phase)  # what was decided ran, and last but for a draft in vain
        assert last is ran[-1]
        numbers_are_known = self.direction_is_known or not self.rises
        expected = truth.phase(self.world.schedule, eps)
        assert not numbers_are_known or expected in (phase, None)
        if truth.steps == 0:
            assert phase == "FULL"
            assert last.version == self.world.version
            assert book.eps[-1] is book.totals[-1] is None  # there is no state to measure against
        k, gap, anchors = (float(value) for value in last.values["clock"])
        if phase != "FULL":
            measured = [each.values["clock"] for each in ran if each.phase == "PREFIX"]
            assert all(torch.equal(clock, last.values["clock"]) for clock in measured[-1:])  # the error that decided is this step's
            generation, written = (int(value) for value in last.values["written"])
            assert generation == truth.generation  # no state of a generation that has ended
            assert written == truth.full[-1]
            assert k == truth.steps - written
            if numbers_are_known:
                assert anchors == len(truth.full)
                assert gap == (truth.full[-1] - truth.full[-2] if len(truth.full) > 1 else 0)
        if self.world.hoists:
            inv = float(last.values["inv"] - self.y)
            assert inv == self.world.weight if truth.steps == 0 else truth.weight <= inv <= self.world.weight
            assert float(last.values["mod"]) == timestep
        if phase == "FULL":
            truth.full.append(truth.steps)
        truth.steps += 1

    @invariant()
    def restarts_are_few_and_each_has_its_reason(self) -> None:
        for name, book in self.driver.generations.current().books().items() if hasattr(self, "driver") else ():
            assert all(isinstance(reason, Reason) for reason in book.restarts)
            assert len(book.phases) == len(book.eps) == len(book.totals)
            if name in self.truths and name in self.restarted:
                assert book.step <= self.truths[name].steps
                assert book.step == self.truths[name].steps or not (self.direction_is_known or not self.rises)


TestGenerations = Generations.TestCase
TestGenerations.settings = settings(max_examples=200, stateful_step_count=12, deadline=None, phases=[Phase.generate])


# ---- single transitions ----------------------------------------------------------------------------------------------

DATA = SCHEDULES["data"]
RULE = Rule(DATA, DATA.numbers())


def decided(*steps: Facts) -> Book:
    book = Book()
    for facts in steps:
        book = decide(book, RULE, facts).book
    return book


BOTH = decided(Facts(9.0), Facts(8.0))


@pytest.mark.parametrize(
    ("book", "facts", "verdict"),
    [
        (BOTH, Facts(7.0, as_prepared=False), Reason.OTHER_ORDER),
        (BOTH, Facts(9.0, model_changed=True), Reason.MODEL_CHANGED),
        (BOTH, Facts(9.0, hoists=True), Reason.HOISTED_BEFORE),
        (BOTH, Facts(9.0, eps=0.1), "FULL"),
        (BOTH, Facts(7.0, eps=0.1), "ESTIMATE"),
        (BOTH, Facts(7.0, eps=0.1, model_changed=True), "ESTIMATE"),  # a change within a generation is looked at where the next begins
        (BOTH, Facts(7.0, awaits_data=True), None),
        (BOTH, Facts(7.0, eps=9.0), "FULL"),
    ],
)
def test_each_row_of_the_table(book: Book, facts: Facts, verdict: Any) -> None:
    assert decide(book, RULE, facts).verdict == (Restart(verdict) if isinstance(verdict, Reason) else verdict)


def test_two_generations_without_movement_are_joined_and_the_clock_of_the_error_is_looked_at() -> None:
    first = decide(Book(), RULE, Facts(0.0))
    second = decide(first.book, RULE, Facts(0.1))
    assert second.begins
    facts = Facts(0.2, eps=0.1, clock=clock_values(second.book, DATA))
    third = decide(second.book, RULE, facts)
    assert third.verdict == Restart(Reason.OTHER_CLOCK)
    assert third.sign == -1
    again = decide(third.book, RULE, Facts(0.2, sign=-1, eps=0.1, clock=clock_values(third.book, DATA)))
    assert again.verdict == "ESTIMATE"
    assert again.book.step == 3


def test_a_decision_leaves_the_book_it_was_given_as_it_is() -> None:
    before = BOTH._asdict()
    decide(BOTH, RULE, Facts(7.0, eps=0.3))
    assert BOTH._asdict() == before


def test_too_many_restarts_are_an_error_with_model_reasons_and_way_out() -> None:
    reasons: Collection[Reason] = [Reason.MODEL_CHANGED] * (MAX_RESTARTS + 1)
    bounded("Model", list(reasons)[:-1])
    with pytest.raises(RFCError, match=r"^Model: one step began anew 5 times, at most 4 are expected: the model .*; call reset\(\)"):
        bounded("Model", list(reasons))
