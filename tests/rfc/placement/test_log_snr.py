"""Full steps placed by noise levels: the list for which forecasts reach least far in log-SNR, by what the sampler makes of them."""

import itertools
import json
import math
from typing import Any, get_args

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

import rfc
from rfc.encoding import decode_method, encode_method
from rfc.placement.nearest import LIMIT, Weight, full_steps_at, nearest_steps
from rfc.placement.noise_levels import noise_levels

BETAS = st.sampled_from(["linear", "squaredcos_cap_v2"])

LENGTHS = st.integers(1, 60).flatmap(lambda steps: st.tuples(st.integers(1, steps), st.just(steps)))

LEVELS = st.lists(st.floats(-4, 4), min_size=1, max_size=9).map(sorted)


def reach(lambdas: list[float], end: float | None, full: tuple[int, ...], weight: Weight, limit: float) -> float:
    """What is to be smallest, read off its definition."""
    noise = [math.exp(-level) for level in lambdas] + [0.0 if end is None else math.exp(-end)]
    moved = [math.atan(ratio) if weight == "angle" else ratio / (1 + ratio) for ratio in noise]
    turned = [abs(a - b) for a, b in itertools.pairwise(moved)]
    lambdas = [max(-limit, min(limit, level)) for level in lambdas]
    for step in range(1, len(turned)):
        turned[step] = turned[step] or turned[step - 1]
    if weight == "share":
        turned = [turn * (1 - share) for turn, share in zip(turned, moved, strict=False)]
    return sum(turned[j] * (level - lambdas[max(a for a in full if a <= j)]) ** 2 for j, level in enumerate(lambdas))


@given(LEVELS, st.none() | st.floats(4, 5), st.integers(1, 9), st.sampled_from(get_args(Weight)), st.sampled_from([2.0, LIMIT]))
def test_no_other_list_of_as_many_steps_reaches_less(
    lambdas: list[float], end: float | None, nfc: int, weight: Weight, limit: float
) -> None:
    nfc = min(nfc, len(lambdas))
    others = [(0, *rest) for rest in itertools.combinations(range(1, len(lambdas)), nfc - 1)]
    found = nearest_steps(tuple(lambdas), end, nfc, weight=weight, limit=limit)
    assert found in others
    assert reach(lambdas, end, found, weight, limit) <= min(reach(lambdas, end, other, weight, limit) for other in others) + 1e-9


@given(LENGTHS, BETAS)
def test_the_schedule_makes_just_these_steps_full(counts: tuple[int, int], betas: str) -> None:
    nfc, steps = counts
    method = rfc.LogSNR(DDIMScheduler(beta_schedule=betas), steps, nfc)
    generation, numbers = rfc.Record(), method.schedule.numbers()
    full = tuple(i for i in range(steps) if generation.decide(method.schedule, numbers, None, None) == "FULL")
    assert full == method.schedule.full_steps
    assert len(full) == nfc
    assert full[0] == 0


def gaps(method: rfc.Method) -> list[int]:
    return [b - a for a, b in itertools.pairwise(method.schedule.full_steps)]


def test_full_steps_are_dense_where_the_sampler_takes_long_steps_in_log_snr() -> None:
    """Linear betas: at the last steps. A cosine schedule: at both ends."""
    linear, cosine = (gaps(rfc.LogSNR(DDIMScheduler(beta_schedule=betas), 50, 14)) for betas in ("linear", "squaredcos_cap_v2"))
    assert linear[0] > 2 * linear[-1]
    assert max(cosine[4:-4]) > 2 * cosine[0]
    assert max(cosine[4:-4]) > 2 * cosine[-1]


def test_a_flow_that_begins_with_noise_alone_does_not_spend_its_steps_there() -> None:
    """lambda is -inf at sigma = 1; beyond the limit further away is no further."""
    method = rfc.LogSNR(FlowMatchEulerDiscreteScheduler(shift=3.0), 28, 8)
    assert method.schedule.lambdas[0] == -math.inf
    assert len(method.schedule.full_steps) == 8
    assert method.schedule.full_steps == nearest_steps(method.schedule.lambdas, None, 8, weight="share", limit=3.5)
    assert method.schedule.full_steps == nearest_steps((-3.5, *method.schedule.lambdas[1:]), None, 8, weight="share", limit=3.5)
    assert max(gaps(method)) > 2


def test_a_flow_says_so_and_more_full_steps_reach_further() -> None:
    levels = rfc.noise_levels(FlowMatchEulerDiscreteScheduler(shift=3.0), 28)
    assert levels.is_flow
    assert not rfc.noise_levels(DDIMScheduler(), 28).is_flow
    for nfc in (2, 8, 14, 20):
        limit = min(LIMIT, 1.5 + nfc / 4)
        assert full_steps_at(levels, nfc) == nearest_steps(levels.lambdas, levels.end, nfc, weight="share", limit=limit)
        own = rfc.LogSNR(lambdas=levels.lambdas, end=levels.end, is_flow=True, nfc=nfc)
        assert own.schedule.full_steps == full_steps_at(levels, nfc)
        assert rfc.LogSNR(nfc=nfc, is_flow=True).schedule.bound(28, levels) == own.schedule
        assert rfc.LogSNR(nfc=nfc).schedule.bound(28, levels).full_steps == own.schedule.full_steps


def test_of_two_calls_at_one_level_the_second_is_the_near_one() -> None:
    """Heun's method calls twice at every level but the first: forecasts from the one to the other reach nowhere."""
    method = rfc.LogSNR(HeunDiscreteScheduler(), 12, 8)
    assert method.schedule.num_steps == 23
    assert all(step % 2 for step in method.schedule.full_steps[1:])


def test_its_programs_are_those_of_chebyshev() -> None:
    method, other = rfc.LogSNR(DDIMScheduler(), 20, 5), rfc.Chebyshev(nfc=5, num_steps=20)
    assert method.estimator == other.estimator
    assert method.schedule.in_graph == other.schedule.in_graph
    assert method.schedule.full_steps != other.schedule.full_steps
    assert method.schedule.num_steps == other.schedule.num_steps == 20


@pytest.mark.parametrize(("steps", "full"), [(50, 14), (28, 8), (4, 2), (1, 1)])
def test_without_a_number_28_percent_are_full(steps: int, full: int) -> None:
    assert len(rfc.LogSNR(DDIMScheduler(), steps).schedule.full_steps) == full


def test_its_repr_is_without_fifty_levels() -> None:
    assert repr(rfc.LogSNR(DDIMScheduler(), 20, 5).schedule) == "LogSNRPlaced(num_steps=20, nfc=5)"


def test_it_is_kept_in_json_with_its_noise_levels() -> None:
    method = rfc.LogSNR(FlowMatchEulerDiscreteScheduler(), 20, 5)  # begins at -inf
    again = decode_method(json.loads(json.dumps(encode_method(method), allow_nan=False)))
    assert again == method
    assert again.with_nfc(7) == rfc.LogSNR(FlowMatchEulerDiscreteScheduler(), 20, 7)


def test_bound_to_the_levels_of_a_generation_it_is_the_method_of_those_levels() -> None:
    cosine = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    schedule = rfc.LogSNR(DDIMScheduler(), 20).schedule
    assert schedule.bound(30, noise_levels(cosine, 30)) == rfc.LogSNR(cosine, 30).schedule
    assert schedule.bound(20) == schedule
    with pytest.raises(ValueError, match="LogSNR: placed for the noise levels of 20 calls, got 30 calls and no levels"):
        schedule.bound(30)


def test_a_sampler_is_named_in_one_way() -> None:
    with pytest.raises(ValueError, match=r"LogSNR: num_steps is of no use without the scheduler; pass pipe\.scheduler too, or neither"):
        rfc.LogSNR(num_steps=4)
    with pytest.raises(ValueError, match="pass them alone, or a scheduler with num_steps"):
        rfc.LogSNR(DDIMScheduler(), lambdas=(0.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lambdas": ()}, r"lambdas must be log\(alpha / sigma\) at each call, .* LogSNR\(scheduler, num_steps\) reads them"),
        ({"lambdas": (0.0, math.nan)}, "lambdas must be"),
        ({"lambdas": ("0",)}, "lambdas must be"),
        ({"lambdas": 3}, "lambdas must be"),
        ({"end": "clean"}, "and end such a number or None, got .* and 'clean'"),
        ({"nfc": 4}, r"LogSNR: nfc must be at most num_steps \(3\), got 4"),
        ({"nfc": 0}, "LogSNR: nfc must be an integer of at least 1, got 0"),
        ({"order": 5}, "order must be an integer from 1 to 4"),
        ({"damping": 2}, "damping must be from 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_it_is_made(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rfc.LogSNR(**({"lambdas": (-1.0, 0.0, 1.0)} | settings))
