"""The schedule of EasyCache: against the released loop, in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, moved, sample, shared_model
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import rfc
import rfc.eager
from rfc import Clock, EasyCache, OutputChange
from rfc.eager.run import Run
from rfc.record import Direction
from rfc.state import SlotSpec

INF = math.inf


def walk(seed: int, steps: int, pace: float) -> list[Tensor]:
    """Tensors that move at random, faster and slower."""
    draw = torch.Generator().manual_seed(seed)
    now = [torch.randn(2, 5, 4, generator=draw)]
    for _ in range(steps - 1):
        now.append(now[-1] + pace * float(torch.rand((), generator=draw)) * torch.randn(2, 5, 4, generator=draw))
    return now


def run_of(schedule: OutputChange, x: list[Tensor], v: list[Tensor], runs: int = 1) -> Run:
    """The schedule's decisions, as the twin takes them: x before the blocks in every step, v behind them in full steps."""
    run = Run(rfc.Method(estimator=rfc.Reuse(), schedule=schedule), schedule.numbers())
    for _ in range(runs):
        for step in range(len(x)):
            run.begin(1.0 - step / 100, (), Direction())
            if run.decide(I=x[step], base=x[step]) == "FULL":
                run.leave(v[step])
    return run


def easycache(x: list[Any], v: list[Any], threshold: float, warmup: int, steps: int | None) -> tuple[list[int], float]:
    """The released loop, and how close a decision came to its threshold."""
    full: list[int] = []
    rate, total, closest = math.nan, 0.0, INF
    for t in range(len(x)):
        is_full = t < warmup or t + 1 == steps
        if not is_full:
            total += rate * np.abs(x[t] - x[t - 1]).mean() / np.abs(v[full[-1]]).mean()
            closest = min(closest, abs(total - threshold))
            is_full = not total < threshold
        if is_full:
            if full:
                rate = np.abs(v[t] - v[full[-1]]).mean() / np.abs(x[t] - x[full[-1]]).mean()
            full.append(t)
            total = 0.0
    return full, closest


@given(
    seed=st.integers(0, 10**6),
    threshold=st.floats(0.01, 2.0) | st.just(INF),
    warmup=st.integers(2, 5),
    steps=st.none() | st.integers(2, 20),
)
def test_output_change_decides_as_easycaches_loop_does(seed: int, threshold: float, warmup: int, steps: int | None) -> None:
    x, v = walk(seed, 20, 0.3), walk(seed + 1, 20, 0.6)
    wanted, closest = easycache([a.double().numpy() for a in x], [a.double().numpy() for a in v], threshold, warmup, steps)
    assume(closest > 1e-4)
    schedule = OutputChange(threshold=threshold, warmup=warmup, num_steps=steps)
    for runs in (1, 2):  # a second generation does not see the first
        phases = run_of(schedule, x, v, runs).generation.phases
        assert [step for step, phase in enumerate(phases) if phase == "FULL"] == wanted


def test_the_rate_is_renewed_at_full_steps_and_the_input_is_kept_at_every_step() -> None:
    schedule = OutputChange(threshold=1.0)
    x = [torch.full((1, 2, 2), value) for value in (1.0, 3.0, 4.0)]
    v = [torch.full((1, 2, 2), value) for value in (2.0, 8.0)]
    specs = {name: SlotSpec((1, 2, 2), torch.float32) for name in ("base", "output")}
    state = {name: torch.full(spec.shape, math.nan) for name, spec in schedule.slots(specs).items()}
    state |= schedule.refresh(state, {"base": x[0], "output": v[0]}, Clock.at(1, 0, 0))
    assert float(schedule.error({"base": x[1]}, state, Clock.at(1, 0, 1))) == 2.0  # before a second full step: the input's own change
    state |= schedule.refresh(state, {"base": x[1], "output": v[1]}, Clock.at(1, 0, 1))
    assert (float(state["rate"]), float(state["size"])) == (3.0, 8.0)
    skipped = schedule.refresh(state, {"base": x[2]}, Clock.at(1, 1, 2))
    assert skipped == {"base": x[2]}
    error = schedule.error({"base": x[2]}, state, Clock.at(1, 1, 2))
    assert error.shape == ()
    assert float(error) == 3.0 * 1.0 / 8.0


def test_an_input_that_never_moved_makes_the_step_full() -> None:
    still = [torch.ones(1, 2, 2)] * 5
    assert run_of(OutputChange(threshold=1.0, warmup=2), still, still).generation.phases == ["FULL"] * 5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_measures_the_stream_before_and_behind_all_blocks(family: str) -> None:
    model, kwargs = shared_model(family)
    seen: list[tuple[Tensor, Tensor]] = []

    class Seeing(OutputChange):
        def refresh(self, old: Any, watched: Any, clock: Clock) -> dict[str, Tensor]:
            if "output" in watched:
                seen.append((watched["base"], watched["output"]))
            return super().refresh(old, watched, clock)

    twin = rfc.eager.cached(model, EasyCache().with_schedule(Seeing(threshold=INF)))
    recorded = rfc.eager.cached(model, rfc.TeaCache(threshold=0.0))
    with torch.no_grad():
        for step in range(3):
            assert torch.equal(sample(twin(**moved(kwargs, step, 10))), sample(recorded(**moved(kwargs, step, 10))))
            (residual,) = (state["O"] for (_, stream), state in recorded._now.run.states.items() if stream == 0)
            assert torch.equal(seen[-1][1] - seen[-1][0], residual)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EasyCache(threshold=-1), r"^OutputChange: threshold must be a number >= 0 \(inf: never full after warm-up\), got -1$"),
        (lambda: EasyCache(warmup=1), r"^OutputChange: warmup must be an integer of at least 2, got 1$"),
        (lambda: EasyCache(num_steps=0), r"^OutputChange: num_steps must be an integer of at least 1, got 0$"),
    ],
)
def test_bad_settings_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
