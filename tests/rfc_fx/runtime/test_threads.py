"""Several threads call in one generation: what is known of a call is its own, whatever is called before its step runs."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
import torch
from sampler_loops import LISTED, Loop, tiny
from torch import Tensor

import rfc
import rfc_fx
from rfc_fx.runtime.rules import Rules

pytestmark = pytest.mark.usefixtures("captured_once")

NET = tiny()


def alone(method: rfc.Method, label: int, seed: int) -> Tensor:
    return Loop(label, seed).run(rfc_fx.transform(NET, method))


@pytest.mark.parametrize("hoist", [False, True])
@pytest.mark.parametrize("method", [LISTED, rfc.RFC(tau=0.3)], ids=str)
def test_a_call_that_comes_between_the_lane_of_a_call_and_its_step_changes_nothing(
    method: rfc.Method, hoist: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rfc_fx.transform(NET, method, config=rfc_fx.Config(hoist=hoist))
    one, two, between, of = Loop(3, 0), Loop(3, 1), list[Callable[[], None]](), Rules.of

    def late(*args: Any) -> Any:
        if between:
            between.pop()()
        return of(*args)

    def step(loop: Loop, name: str) -> None:
        with model.cache_context(name):
            loop.step(model)

    monkeypatch.setattr(Rules, "of", late)
    with model.generation():
        for _ in range(3):  # ahead of the other
            step(two, "two")
        while not one.is_done:
            if one.step_index in (1, 2, 5):
                between.append(lambda: step(two, "two"))
            step(one, "one")
        while not two.is_done:
            step(two, "two")
    assert torch.equal(one.x, alone(method, 3, 0))
    assert torch.equal(two.x, alone(method, 3, 1))


def test_prompts_that_threads_call_at_once_without_names_have_a_lane_each() -> None:
    model, loops, interval = rfc_fx.transform(NET, LISTED), [Loop(label, label) for label in range(3)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with model.generation() as generation, ThreadPoolExecutor(3) as threads:
            while not loops[0].is_done:
                list(threads.map(lambda context, loop: context.run(loop.step, model), [copy_context() for _ in loops], loops))
    finally:
        sys.setswitchinterval(interval)
    assert len(generation.contexts) == 3
    assert all(torch.equal(loop.x, alone(LISTED, label, label)) for label, loop in enumerate(loops))


def test_a_prompt_that_comes_later_takes_no_lane_of_one_that_is_at_a_lower_noise() -> None:
    model, first, second = rfc_fx.transform(NET, LISTED), Loop(3, 0), Loop(5, 1)
    with model.generation():
        first.run(model, 4)
        while not first.is_done:
            second.step(model)
            first.step(model)
        second.run(model)
    assert torch.equal(first.x, alone(LISTED, 3, 0))
    assert torch.equal(second.x, alone(LISTED, 5, 1))
