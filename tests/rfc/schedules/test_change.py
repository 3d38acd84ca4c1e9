"""Schedules that watch how much the network's beginning changes: against the released loops of TeaCache, First-Block cache and DiCache."""

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, moved, sample
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerances import FORECAST
from torch import Tensor

from rfc import AnchorChange, Clock, DiCache, FirstBlockCache, Method, ProbeChange, Reuse, Schedule, StepChange, TeaCache
from rfc.eager.model import cached
from rfc.eager.run import Run
from rfc.record import Direction
from rfc.schedules.change import relative_change
from rfc.state import SlotSpec

NAN, INF = math.nan, math.inf

FLUX = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
"""TeaCache's polynomial for FLUX.1-dev."""

seeds = st.integers(0, 10**6)
thresholds = st.floats(0.01, 3.0) | st.just(INF)


def walk(seed: int, steps: int, pace: float = 0.3) -> list[Tensor]:
    """An input that moves at random, faster and slower."""
    draw = torch.Generator().manual_seed(seed)
    now = [torch.randn(2, 5, 4, generator=draw)]
    for _ in range(steps - 1):
        now.append(now[-1] + pace * float(torch.rand((), generator=draw)) * torch.randn(2, 5, 4, generator=draw))
    return now


def generation(schedule: Schedule, I: Sequence[Tensor], base: Sequence[Tensor] | None = None, *, runs: int = 1) -> Run:
    """The schedule's decisions over these inputs, as the twin takes them; the last of so many generations."""
    run = Run(Method(estimator=Reuse(), schedule=schedule), schedule.numbers())
    for _ in range(runs):
        for step, x in enumerate(I):
            run.begin(1.0 - step / 100, (), Direction())
            run.decide(I=x, base=x if base is None else base[step])
    return run


def full_steps(run: Run) -> list[int]:
    return [step for step, phase in enumerate(run.generation.phases) if phase == "FULL"]


def distance(a: Tensor, b: Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    return float(np.abs(x - y).mean() / np.abs(y).mean())


# --- the released loops, literally -----------------------------------------------------------------------------------


def teacache(
    I: Sequence[Tensor], threshold: float, coefficients: Sequence[float], steps: int | None, warmup: int
) -> tuple[list[int], float]:
    """TeaCache's loop, and how close a decision came to its threshold."""
    p, full, total, closest = np.poly1d(coefficients), [], 0.0, INF
    for t, x in enumerate(I):
        if t > 0:
            total += p(distance(x, I[t - 1]))
        is_first_or_last = t < warmup or (steps is not None and t == steps - 1)
        if not is_first_or_last:
            closest = min(closest, abs(total - threshold) / threshold if math.isfinite(threshold) else INF)
        if is_first_or_last or not total < threshold:
            full.append(t)
            total = 0.0
    return full, closest


def first_block_cache(I: Sequence[Tensor], threshold: float) -> tuple[list[int], float]:
    """The loop of ParaAttention and diffusers: the residual of the first block against that of the last full step."""
    kept, full, closest = None, [], INF
    for t, x in enumerate(I):
        d = INF if kept is None else distance(x, kept)
        if kept is not None:
            closest = min(closest, abs(d - threshold))
        if d > threshold:
            kept = x
            full.append(t)
    return full, closest


def dicache(x: Sequence[Tensor], y: Sequence[Tensor], threshold: float, against_input: bool) -> tuple[list[int], float]:
    """DiCache's loop: how much the probe changes, less how much its input does, added up since the last full step."""
    total, full, closest = 0.0, [], INF
    for t in range(len(x)):
        if t > 0:
            d_y, d_x = distance(y[t], y[t - 1]), distance(x[t], x[t - 1])
            total += abs(d_y - d_x) if against_input else d_y
            closest = min(closest, abs(total - threshold))
        if t == 0 or not total < threshold:
            full.append(t)
            total = 0.0
    return full, closest


@pytest.mark.parametrize("coefficients", [(1.0, 0.0), FLUX], ids=["identity", "flux"])
@given(seed=seeds, threshold=thresholds, steps=st.none() | st.integers(2, 20), warmup=st.integers(1, 4))
def test_step_change_decides_as_teacaches_loop_does(
    coefficients: tuple[float, ...], seed: int, threshold: float, steps: int | None, warmup: int
) -> None:
    I = walk(seed, 20)
    wanted, closest = teacache(I, threshold, coefficients, steps, warmup)
    assume(closest > 1e-4)
    schedule = StepChange(threshold=threshold, coefficients=coefficients, num_steps=steps, warmup=warmup)
    assert full_steps(generation(schedule, I)) == wanted


@given(seed=seeds, threshold=st.floats(0.01, 1.0))
def test_anchor_change_decides_as_the_first_block_cache_does(seed: int, threshold: float) -> None:
    I = walk(seed, 20)
    wanted, closest = first_block_cache(I, threshold)
    assume(closest > 1e-4)
    assert full_steps(generation(AnchorChange(threshold=threshold), I)) == wanted


@pytest.mark.parametrize("against_input", [True, False])
@given(seed=seeds, threshold=st.floats(0.01, 1.0))
def test_probe_change_decides_as_dicaches_loop_does(against_input: bool, seed: int, threshold: float) -> None:
    x, moved_by = walk(seed, 20), walk(seed + 1, 20, pace=0.6)
    y = [a + b for a, b in zip(x, moved_by, strict=True)]
    wanted, closest = dicache(x, y, threshold, against_input)
    assume(closest > 1e-4)
    schedule = ProbeChange(threshold=threshold, against_input=against_input)
    assert full_steps(generation(schedule, moved_by, x)) == wanted


# --- what they measure, and from where -------------------------------------------------------------------------------


@given(seed=seeds)
def test_the_relative_change_is_the_mean_move_over_the_mean_size_of_the_whole_batch(seed: int) -> None:
    now, before = walk(seed, 2)
    assert float(relative_change(now, before)) == pytest.approx(distance(now, before), rel=FORECAST)
    assert float(relative_change(now.half() * 1000, now.half() * 500)) == pytest.approx(1.0, rel=2e-3)  # adds up in float32


def test_step_change_measures_from_the_step_before_and_anchor_change_from_the_last_full_step() -> None:
    I = [torch.full((1, 2, 2), value) for value in (1.0, 2.0, 3.0, 4.0)]
    steps, anchors = (generation(kind(threshold=INF), I).generation.eps for kind in (StepChange, AnchorChange))
    assert steps == [None, *(pytest.approx(value) for value in (1.0, 1 / 2, 1 / 3))]
    assert anchors == [None, *(pytest.approx(value) for value in (1.0, 2.0, 3.0))]


def test_the_errors_of_step_change_add_up_and_those_of_anchor_change_do_not() -> None:
    I = [torch.full((1, 2, 2), value) for value in (1.0, 2.0, 3.0, 4.0)]
    assert generation(StepChange(threshold=INF), I).generation.totals == [None, *(pytest.approx(v) for v in (1.0, 1.5, 11 / 6))]
    assert generation(AnchorChange(threshold=INF), I).generation.totals == [None, *(pytest.approx(v) for v in (1.0, 2.0, 3.0))]


def test_a_full_step_starts_the_sum_again_and_the_next_change_is_measured_from_it() -> None:
    I = [torch.full((1, 2, 2), value) for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    run = generation(StepChange(threshold=1.2), I)
    assert full_steps(run) == [0, 2]
    assert run.generation.totals[2:] == [pytest.approx(v) for v in (1.5, 1 / 3, 1 / 3 + 1 / 4)]


@pytest.mark.parametrize("kind", [StepChange, AnchorChange, ProbeChange])
def test_a_second_generation_does_not_see_the_first(kind: type[Any]) -> None:
    I, base = walk(0, 12), walk(1, 12)
    schedule = kind(threshold=0.3)
    once, twice = generation(schedule, I, base), generation(schedule, I, base, runs=2)
    assert twice.generation.eps == once.generation.eps
    assert twice.generation.phases == once.generation.phases
    assert "ESTIMATE" in once.generation.phases


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 2))
def test_the_polynomial_is_given_from_the_highest_power_down(a: float, b: float, c: float, d: float) -> None:
    schedule = StepChange(threshold=1, coefficients=(a, b, c))
    now, before = torch.full((1, 3), 1 + d), torch.ones(1, 3)
    error = schedule.error({"I": now}, {"I": before}, Clock.at(1, 1, 1))
    assert error.shape == ()
    assert error.dtype == torch.float32
    assert float(error) == pytest.approx(a * d * d + b * d + c, rel=1e-5, abs=1e-5)


# --- what they keep --------------------------------------------------------------------------------------------------

SCHEDULES: list[Schedule] = [StepChange(threshold=0.1), AnchorChange(threshold=0.1), ProbeChange(threshold=0.1)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)


@every_schedule
def test_what_is_watched_is_kept_as_it_was_after_every_step_or_every_full_one(schedule: Schedule) -> None:
    assert schedule.watches == (("I", "base") if isinstance(schedule, ProbeChange) else ("I",))
    assert schedule.remembers == ("full steps" if isinstance(schedule, AnchorChange) else "all steps")
    assert schedule.accumulates == (not isinstance(schedule, AnchorChange))
    seen = {name: torch.randn(2, 3).bfloat16() for name in schedule.watches}
    kept = schedule.refresh({}, seen, Clock.at(1, 1, 1))
    assert schedule.slots({name: SlotSpec((2, 3), torch.bfloat16) for name in seen}).keys() == kept.keys()
    assert all(kept[name] is seen[name] for name in seen)


@every_schedule
def test_thresholds_are_float32_tensors_without_axes_whatever_they_are(schedule: Schedule) -> None:
    other = type(schedule)(threshold=INF, warmup=7, num_steps=50)  # type: ignore[call-arg]
    for one in (schedule, other):
        assert all(value.shape == () and value.dtype == torch.float32 for value in one.numbers().values())
    assert schedule.numbers().keys() == other.numbers().keys()
    assert schedule.in_graph == other.in_graph


def test_the_polynomial_and_what_a_probe_is_held_against_are_part_of_the_programs() -> None:
    assert StepChange(threshold=1).in_graph != StepChange(threshold=1, coefficients=FLUX).in_graph
    assert ProbeChange(threshold=1).in_graph != ProbeChange(threshold=1, against_input=False).in_graph
    assert StepChange(threshold=1).in_graph != AnchorChange(threshold=1).in_graph


@every_schedule
def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    assert schedule == copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule))
    assert hash(schedule) == hash(copy.deepcopy(schedule))
    assert StepChange(threshold=1, coefficients=[1, 0]) == StepChange(threshold=1, coefficients=(1.0, 0.0))


# --- bounds ----------------------------------------------------------------------------------------------------------


@every_schedule
@given(seed=seeds, warmup=st.integers(1, 6), steps=st.none() | st.integers(1, 14), count=st.integers(1, 12), threshold=thresholds)
def test_the_first_steps_and_a_known_last_one_are_full(
    schedule: Schedule, seed: int, warmup: int, steps: int | None, count: int, threshold: float
) -> None:
    given_schedule = type(schedule)(threshold=threshold, warmup=warmup, num_steps=steps)  # type: ignore[call-arg]
    full = full_steps(generation(given_schedule, walk(seed, count), walk(seed + 1, count)))
    assert full[:warmup] == list(range(min(warmup, count)))
    assert steps is None or steps > count or steps - 1 in full


@every_schedule
@given(seed=seeds, warmup=st.integers(1, 4))
def test_a_threshold_of_zero_makes_every_step_full_and_an_infinite_one_none_after_the_warm_up(
    schedule: Schedule, seed: int, warmup: int
) -> None:
    I, base = walk(seed, 10), walk(seed + 1, 10)
    for threshold, wanted in ((0, 10), (INF, warmup)):
        given_schedule = type(schedule)(threshold=threshold, warmup=warmup)  # type: ignore[call-arg]
        assert full_steps(generation(given_schedule, I, base)) == list(range(wanted))


@every_schedule
@given(warmup=st.integers(1, 5), steps=st.none() | st.integers(1, 9), count=st.integers(1, 9))
def test_a_schedule_knows_whether_it_can_skip(schedule: Schedule, warmup: int, steps: int | None, count: int) -> None:
    given_schedule = type(schedule)(threshold=INF, warmup=warmup, num_steps=steps)  # type: ignore[call-arg]
    assume(steps is None or steps >= count)
    still = [torch.ones(1, 2, 2)] * count
    assert given_schedule.can_skip(count) == ("ESTIMATE" in generation(given_schedule, still, still).generation.phases)
    assert not type(schedule)(threshold=0).can_skip(count)  # type: ignore[call-arg]


@every_schedule
@pytest.mark.parametrize("threshold", [0.5, INF])
def test_an_error_that_is_no_number_makes_its_step_full(schedule: Schedule, threshold: float) -> None:
    still, lost = torch.ones(1, 2, 2), torch.full((1, 2, 2), NAN)
    run = generation(type(schedule)(threshold=threshold), [still, still, lost], [still] * 3)  # type: ignore[call-arg]
    assert run.generation.phases == ["FULL", "ESTIMATE", "FULL"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StepChange(threshold=-0.1), r"^StepChange: threshold must be a number >= 0 \(inf: never full after warm-up\), got -0\.1$"),
        (lambda: AnchorChange(threshold=NAN), r"^AnchorChange: threshold must be a number >= 0 .*, got nan$"),
        (lambda: ProbeChange(threshold="0.1"), r"^ProbeChange: threshold must be a number >= 0 .*, got '0\.1'$"),
        (lambda: ProbeChange(threshold=True), r"^ProbeChange: threshold must be a number >= 0 .*, got True$"),
        (lambda: StepChange(threshold=1, warmup=0), r"^StepChange: warmup must be an integer of at least 1, got 0$"),
        (lambda: AnchorChange(threshold=1, num_steps=0), r"^AnchorChange: num_steps must be an integer of at least 1, got 0$"),
        (lambda: ProbeChange(threshold=1, num_steps=2.5), r"^ProbeChange: num_steps must be an integer of at least 1, got 2\.5$"),
        (
            lambda: StepChange(threshold=1, coefficients=()),
            r"^StepChange: coefficients must be finite numbers, the highest power first, got \(\)$",
        ),
        (lambda: StepChange(threshold=1, coefficients=[1, INF]), r"^StepChange: coefficients must be finite numbers, .*, got \[1, inf\]$"),
        (lambda: StepChange(threshold=1, coefficients="x"), r"^StepChange: coefficients must be finite numbers, .*, got 'x'$"),
        (lambda: StepChange(threshold=1, coefficients=3), r"^StepChange: coefficients must be finite numbers, .*, got 3$"),
        (lambda: TeaCache(threshold=-1), r"^StepChange: threshold must be a number >= 0"),
        (lambda: FirstBlockCache(blocks=0), r"^FirstBlockCache: blocks must be an integer of at least 1, got 0$"),
        (lambda: FirstBlockCache(tail=-1), r"^FirstBlockCache: tail must be an integer of at least 0, got -1$"),
        (lambda: DiCache(depth=0), r"^DiCache: depth must be an integer of at least 1, got 0$"),
    ],
)
def test_a_schedule_refuses_what_it_cannot_mean_and_says_what_it_wanted(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


# --- against diffusers' own ------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "threshold", "phases"), [("flux", 0.4, "FEEEEFEEEE"), ("wan", 0.1, "FEFEFEFEEE"), ("wan", 0.05, "F" * 10)]
)
def test_the_first_block_cache_is_that_of_diffusers(family: str, threshold: float, phases: str) -> None:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    model, kwargs = FAMILIES[family]()
    theirs, _ = FAMILIES[family]()
    apply_first_block_cache(theirs, FirstBlockCacheConfig(threshold=threshold))
    twin = cached(model, FirstBlockCache(threshold=threshold))
    with theirs.cache_context("cond"):
        for step in range(10):
            assert torch.equal(sample(twin(**moved(kwargs, step))), sample(theirs(**moved(kwargs, step))))
    assert "".join(phase[0] for phase in twin.stats.phases) == phases
