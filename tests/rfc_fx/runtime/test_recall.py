"""Full steps that are handed out again: bit for bit what computing them gives, and computed no more often than said."""

from dataclasses import replace

import pytest
import torch
from sampler_loops import STEPS, Loop, tiny
from torch import Tensor

import rfc
import rfc_fx
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.recall import Recall

pytestmark = pytest.mark.usefixtures("captured_once")

FULL_STEPS = (0, 2, 4, 7)


def method(moved: int = STEPS, by: float = 0.0, granularity: str = "stack") -> rfc.Method:
    """A list whose weights differ from step `moved` on."""
    rows = [(0.1, -0.05 + (by if step >= moved else 0.0)) for step in range(STEPS)]
    schedule = rfc.Weighted(full_steps=FULL_STEPS, num_steps=STEPS, weights=rows)
    return rfc.Method(estimator=rfc.LinearPrediction(order=2), schedule=schedule, granularity=granularity)


def drawn(model: CachedModel, seed: int = 1, label: int = 3) -> Tensor:
    with model.generation():
        samples: Tensor = Loop(label, seed).run(model)
        return samples


@pytest.fixture
def models() -> tuple[CachedModel, CachedModel, Recall]:
    """One that recalls, and one that does not."""
    torch.manual_seed(0)
    own = tiny()
    recalling, plain = (rfc_fx.transform(own, method()) for _ in range(2))
    recalling.driver.recall = recall = Recall()
    return recalling, plain, recall


def test_draws_that_differ_from_a_step_on_recall_the_steps_before(models: tuple[CachedModel, CachedModel, Recall]) -> None:
    recalling, plain, recall = models
    for moved, hits in (
        (STEPS, 0),
        (STEPS, 0),
        (STEPS, 4),
        (7, 3),
        (5, 3),
        (4, 2),
        (3, 2),
        (1, 1),
        (0, 1),
        (STEPS, 4),
    ):  # a first step has no weights
        recalling.method = plain.method = method(moved, 0.02)
        before = recall.hits
        assert torch.equal(drawn(recalling), drawn(plain))
        assert recall.hits - before == hits, moved
        assert recalling.stats.nfc == len(FULL_STEPS)


def test_another_seed_condition_or_list_is_computed(models: tuple[CachedModel, CachedModel, Recall]) -> None:
    recalling, plain, recall = models
    for seed, label in ((1, 3), (1, 3), (2, 3), (1, 4), (2, 3), (1, 4)):
        assert torch.equal(drawn(recalling, seed, label), drawn(plain, seed, label))
    assert recall.hits == 0
    assert torch.equal(drawn(recalling, 2, 3), drawn(plain, 2, 3))
    assert recall.hits == len(FULL_STEPS)
    recalling.method = plain.method = replace(method(), schedule=replace(method().schedule, full_steps=(0, 2, 5, 7)))  # type: ignore[type-var]
    assert torch.equal(drawn(recalling), drawn(plain))
    assert recall.hits == len(FULL_STEPS) + 2


def test_models_that_share_it_do_not_take_each_others_steps() -> None:
    recall, models = Recall(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        own = tiny()
        recalling, plain = (rfc_fx.transform(own, method()) for _ in range(2))
        recalling.driver.recall = recall
        models.append((recalling, plain))
    for _ in range(3):
        for recalling, plain in models:
            assert torch.equal(drawn(recalling), drawn(plain))
    assert recall.hits == 2 * len(FULL_STEPS)


def test_steps_of_interleaved_generations_are_their_own(models: tuple[CachedModel, CachedModel, Recall]) -> None:
    recalling, plain, recall = models
    alone = [drawn(plain, seed) for seed in (1, 2)]
    for _ in range(3):
        loops = [Loop(3, seed) for seed in (1, 2)]
        with recalling.generation() as one, recalling.generation() as other:
            for _ in range(STEPS):
                loops[0].step(one)
                loops[1].step(other)
        assert all(torch.equal(loop.x, known) for loop, known in zip(loops, alone, strict=True))
    assert recall.hits == 2 * len(FULL_STEPS)


def test_what_is_handed_out_is_the_callers_own(models: tuple[CachedModel, CachedModel, Recall]) -> None:
    recalling, plain, _ = models
    known = drawn(plain)
    for _ in range(4):
        with recalling.generation():
            loop = Loop(3, 1)
            for _ in range(STEPS):
                output = loop.call(recalling)
                loop.take(output.clone())
                output.zero_()
        assert torch.equal(loop.x, known)


def test_no_more_is_kept_than_was_said_and_what_nobody_asks_for_makes_room(models: tuple[CachedModel, CachedModel, Recall]) -> None:
    recalling, plain, _ = models
    recalling.driver.recall = roomy = Recall()
    drawn(recalling), drawn(recalling)
    one = next(iter(roomy._kept.values())).bytes
    recalling.driver.recall = recall = Recall(most_bytes=4 * one)
    for _ in range(3):
        drawn(recalling)
    assert recall.hits == 4
    for _ in range(9):
        assert torch.equal(drawn(recalling, 2), drawn(plain, 2))
        assert sum(kept.bytes for kept in recall._kept.values()) <= 4 * one
    assert recall.hits > 4  # the first seed's have made room
    recalling.driver.recall = nothing = Recall(most_bytes=0)
    for _ in range(3):
        assert torch.equal(drawn(recalling), drawn(plain))
    assert nothing.hits == 0
