"""State has an owner: names go with tasks, a prompt never takes over another's state, what is around a call is part of its programs."""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from sampler_loops import LISTED, Loop, tiny
from torch import Tensor

import rfc
import rfc_fx
from rfc_fx.runtime.dynamo import capturing

NET = tiny()


@cache
def alone(label: int, seed: int) -> Tensor:
    return Loop(label, seed).run(rfc_fx.transform(NET, LISTED))


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("in_thread", [False, True])
def test_names_belong_to_tasks_and_go_with_to_thread(in_thread: bool) -> None:
    model = rfc_fx.transform(NET, LISTED)

    async def request(seed: int) -> Tensor:
        loop = Loop(3, seed)
        while not loop.is_done:
            with model.cache_context(f"request {seed}"):
                await asyncio.sleep(0)
                loop.take(await asyncio.to_thread(loop.call, model) if in_thread else loop.call(model))
        return loop.x

    async def together() -> list[Tensor]:
        return list(await asyncio.gather(*map(request, range(3))))

    assert all(torch.equal(x, alone(3, seed)) for seed, x in enumerate(asyncio.run(together())))


def test_a_fifth_prompt_begins_with_empty_state() -> None:
    model = rfc_fx.transform(NET, LISTED)
    made = [Loop(label, label) for label in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            for loop in made:
                assert torch.equal(loop.call(model), loop.call(NET))  # computed in full
                loop.step(NET)


def test_several_threads_make_the_first_call_and_one_captures() -> None:
    model = rfc_fx.transform(NET, LISTED)

    def run(seed: int) -> Tensor:
        with model.cache_context(f"request {seed}"):
            return Loop(3, seed).run(model)

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(run, range(3)))
    assert len(model.cache) == 1
    assert all(torch.equal(x, alone(3, seed)) for seed, x in enumerate(results))


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("first", [True, False])
def test_autocast_is_part_of_what_programs_are_made_for(first: bool) -> None:
    model = rfc_fx.transform(NET, rfc.FullCompute())
    for enabled in (first, not first):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert torch.equal(Loop(3, 0).run(model, 2), Loop(3, 0).run(NET, 2))
    assert len(model.cache) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_conditioning_that_is_overwritten_is_another_one(mode: Any) -> None:
    model = rfc_fx.transform(NET, LISTED)
    with mode():
        label, x = torch.tensor([3]), Loop(3, 0).x
        for timestep in (999, 900, 800):
            model(x, timestep=torch.tensor([timestep]), class_labels=label)
        label.fill_(5)
        call = {"timestep": torch.tensor([700]), "class_labels": label}
        assert torch.equal(model(x, **call).sample, NET(x, **call).sample)


def test_a_call_runs_while_another_thread_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says "exporting" to every thread; the model of this one is captured already."""
    model, expected = rfc_fx.transform(NET, LISTED), alone(3, 0)
    Loop(3, 0).run(model)
    model.reset()
    with ThreadPoolExecutor(1) as other:
        block = capturing()
        other.submit(block.__enter__).result()
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        try:
            assert torch.equal(Loop(3, 0).run(model), expected)
        finally:
            other.submit(block.__exit__, None, None, None).result()


def test_one_graph_runs_with_what_was_prepared_for_its_own_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another thread prepares its call between a call's preparation and its step."""
    model = rfc_fx.transform(NET, LISTED, config=rfc_fx.Config(dispatch="cond"))
    prepare = type(model)._prepare
    with model.generation() as first, model.generation() as second:
        one, two = Loop(3, 0), Loop(5, 1)
        between: list[Any] = []

        def prepared(own: Any, args: Any, kwargs: Any) -> Any:
            ready = prepare(own, args, kwargs)
            if between:
                between.pop()()
            return ready

        monkeypatch.setattr(type(model), "_prepare", prepared)
        while not one.is_done:
            between.append(lambda: two.step(second))
            one.step(first)
    assert torch.equal(one.x, alone(3, 0))
    assert torch.equal(two.x, alone(5, 1))
