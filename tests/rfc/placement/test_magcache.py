"""MagCache: its list of full steps against a second implementation, and its samples against diffusers' own."""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from families import FAMILIES, moved, sample
from hypothesis import assume, given
from hypothesis import strategies as st

from rfc import MagCache, Placed, Reuse, magnitude_ratios
from rfc.eager.model import cached

FLUX = (1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562, 1.00781)
FLUX += (1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359, 0.89062)
"""Growth of FLUX.1-dev's residual over 28 steps, as published (diffusers' FLUX_MAG_RATIOS)."""


def second(ratios: list[float], threshold: float, max_skip: int, retention: float) -> tuple[list[int], float]:
    """Since the last full step: skip as long as sum |1 - prod ratios| stays within; and how close a decision came to the threshold."""
    full, closest = [0], math.inf
    begin = int(retention * len(ratios) + 0.5)
    for step in range(1, len(ratios)):
        since = range(max(full[-1] + 1, begin), step + 1)
        error = sum(abs(1 - math.prod(ratios[since.start : last + 1])) for last in since)
        closest = min(closest, abs(error - threshold))
        if step < begin or error > threshold or len(since) > max_skip:
            full.append(step)
    return full, closest


@given(
    st.lists(st.floats(0.5, 1.5), min_size=1, max_size=30),
    st.floats(0, 1),
    st.integers(0, 6),
    st.floats(0, 1),
)
def test_the_list_is_that_of_a_second_implementation(ratios: list[float], threshold: float, max_skip: int, retention: float) -> None:
    wanted, closest = second(ratios, threshold, max_skip, retention)
    assume(closest > 1e-9)
    method = MagCache(ratios=ratios, threshold=threshold, max_skip=max_skip, retention=retention)
    assert list(method.schedule.full_steps) == wanted
    assert method.schedule.placed == Placed(full_steps=wanted, num_steps=len(ratios))


@given(st.integers(1, 60), st.floats(0, 1))
def test_the_first_retained_share_of_the_steps_is_full_whatever_the_threshold(steps: int, retention: float) -> None:
    full = MagCache(ratios=FLUX, num_steps=steps, retention=retention, threshold=math.inf, max_skip=steps).schedule.full_steps
    assert list(full) == list(range(max(1, math.floor(retention * steps + 0.5))))


@given(st.integers(0, 8), st.integers(2, 60))
def test_at_most_max_skip_steps_in_a_row_are_skipped(max_skip: int, steps: int) -> None:
    full = MagCache(ratios=FLUX, num_steps=steps, retention=0, threshold=math.inf, max_skip=max_skip).schedule.full_steps
    assert list(full) == list(range(0, steps, max_skip + 1))


@given(st.integers(1, 60))
def test_a_threshold_of_zero_skips_only_where_the_residual_does_not_grow_at_all(steps: int) -> None:
    full = MagCache(ratios=[1.1] * 10, num_steps=steps, retention=0, threshold=0).schedule.full_steps
    assert list(full) == list(range(steps))
    assert MagCache(ratios=[1.0] * 10, num_steps=steps, retention=0, threshold=0, max_skip=99).schedule.full_steps == (0,)


def test_fluxs_ratios_with_the_settings_of_the_paper_and_of_diffusers_give_these_full_steps() -> None:
    paper = MagCache(ratios=FLUX, threshold=0.24, max_skip=5, retention=0.1)
    assert list(paper.schedule.full_steps) == second(list(FLUX), 0.24, 5, 0.1)[0]
    assert len(MagCache(ratios=FLUX).schedule.full_steps) == 14
    assert len(paper.schedule.full_steps) == 8


@pytest.mark.parametrize("steps", [7, 14, 28, 50])
def test_for_another_number_of_steps_the_nearest_ratios_are_taken(steps: int) -> None:
    from diffusers.hooks.mag_cache import nearest_interp

    nearest = nearest_interp(torch.tensor(FLUX, dtype=torch.float64), steps).tolist()
    assert MagCache(ratios=FLUX, num_steps=steps).schedule.full_steps == MagCache(ratios=nearest).schedule.full_steps


def test_the_residual_of_the_whole_stack_is_reused_by_a_list_that_is_known_beforehand() -> None:
    method = MagCache(ratios=list(FLUX))
    assert method.estimator == Reuse()
    assert (method.granularity, method.probe) == ("stack", 0)
    assert method == MagCache(ratios=FLUX)
    assert hash(method) == hash(MagCache(ratios=FLUX))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_magcache_is_that_of_diffusers(family: str) -> None:
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    model, kwargs = FAMILIES[family]()
    theirs, _ = FAMILIES[family]()
    apply_mag_cache(theirs, MagCacheConfig(mag_ratios=list(FLUX), num_inference_steps=10, threshold=0.24, max_skip_steps=3))
    twin = cached(model, MagCache(ratios=FLUX, num_steps=10, threshold=0.24))
    with theirs.cache_context("cond") if hasattr(theirs, "cache_context") else nullcontext():
        for step in range(10):
            assert torch.equal(sample(twin(**moved(kwargs, step))), sample(theirs(**moved(kwargs, step))))
    assert 2 < twin.stats.nfc < 8


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: MagCache(ratios=()),
            r"^MagCache: ratios must be .*, one per step, got \(\); rfc\.magnitude_ratios measures",
        ),
        (lambda: MagCache(ratios=[1.0, 0.0]), r"^MagCache: ratios must be finite numbers above 0, one per step, got \[1\.0, 0\.0\];"),
        (lambda: MagCache(ratios=[math.inf]), r"^MagCache: ratios must be finite numbers above 0, one per step, got \[inf\];"),
        (lambda: MagCache(ratios=["a"]), r"^MagCache: ratios must be finite numbers above 0, one per step, got \['a'\];"),
        (lambda: MagCache(ratios=FLUX, threshold=-1), r"^MagCache: threshold must be a number >= 0, got -1$"),
        (lambda: MagCache(ratios=FLUX, threshold=math.nan), r"^MagCache: threshold must be a number >= 0, got nan$"),
        (lambda: MagCache(ratios=FLUX, max_skip=-1), r"^MagCache: max_skip must be an integer of at least 0, got -1$"),
        (lambda: MagCache(ratios=FLUX, retention=1.5), r"^MagCache: retention must be in \[0, 1\], got 1\.5$"),
        (lambda: MagCache(ratios=FLUX, num_steps=0), r"^MagCache: num_steps must be an integer of at least 1, got 0$"),
    ],
)
def test_magcache_refuses_what_it_cannot_mean_and_says_what_it_wanted(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@torch.no_grad()
def test_the_measured_ratios_are_those_of_the_stacks_residual() -> None:
    model, kwargs = FAMILIES["dit"]()
    streams: list[torch.Tensor] = []
    model.transformer_blocks[0].register_forward_pre_hook(lambda block, args, kwargs: streams.append(args[0]), with_kwargs=True)
    model.transformer_blocks[-1].register_forward_hook(lambda block, args, output: streams.append(output))
    for step in range(5):
        model(**moved(kwargs, step, 5))
    lengths = [(after - before).norm(dim=-1) for before, after in zip(streams[::2], streams[1::2], strict=True)]
    model, kwargs = FAMILIES["dit"]()
    ratios = magnitude_ratios(model, lambda model: [model(**moved(kwargs, step, 5)) for step in range(5)])
    assert ratios == pytest.approx([1.0, *(float((now / before).mean()) for before, now in itertools.pairwise(lengths))], rel=1e-5)
    assert MagCache(ratios=ratios).schedule.num_steps == 5


def test_ratios_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="magnitude_ratios: generate did not call the model that it received"):
        magnitude_ratios(FAMILIES["dit"]()[0], lambda model: None)
