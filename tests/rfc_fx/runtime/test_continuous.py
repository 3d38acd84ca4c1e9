"""Continuous batching: rows of one batch belong to generations of their own, at different steps of their lists."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from families import moved, sample, shared_model

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 8
ALONE = rfc_fx.Config(decision="per_sample")
METHOD = rfc.NewtonRCS(tau=0.3)


def call_of(kwargs: dict[str, Any], request: int, step: int) -> dict[str, Any]:
    """The call of one request at one of its steps, as a batch of one."""
    call = moved(kwargs, step, STEPS)
    one = {name: value[:1] if isinstance(value, torch.Tensor) and len(value) == 2 else value for name, value in call.items()}
    return {**one, "hidden_states": one["hidden_states"] * (1 + 0.1 * request) + 0.01 * request}


def together(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Several calls of one row as one batch."""
    return {
        name: torch.cat([call[name] for call in calls]) if isinstance(calls[0][name], torch.Tensor) else calls[0][name] for name in calls[0]
    }


def drawn_alone(model: Any, kwargs: dict[str, Any], request: int) -> list[torch.Tensor]:
    cached = rfc_fx.transform(model, METHOD, config=ALONE)
    with cached.generation():
        return [sample(cached(**call_of(kwargs, request, step))) for step in range(STEPS)]


def test_requests_that_join_and_leave_a_running_batch_get_the_outputs_of_each_alone() -> None:
    model, kwargs = shared_model("dit")
    cached: Any = rfc_fx.transform(model, METHOD, config=ALONE)
    begins = {0: 0, 1: 3, 2: 5}  # the tick of the batch at which a request comes
    outputs: dict[int, list[torch.Tensor]] = {request: [] for request in begins}
    phases: dict[int, tuple[str, ...]] = {}
    opened: dict[int, Any] = {}
    with ExitStack() as stack:
        for tick in range(STEPS + 5):
            running = [request for request, begin in begins.items() if begin <= tick < begin + STEPS]
            for request in running:
                if request not in opened:
                    opened[request] = stack.enter_context(cached.generation())
            order = running[::-1] if tick % 2 else running  # rows change places
            batch = together([call_of(kwargs, request, tick - begins[request]) for request in order])
            result = sample(cached.step([opened[request] for request in order], **batch))
            for request, row in zip(order, result.split(1), strict=True):
                outputs[request].append(row)
                phases[request] = opened[request].stats.phases
    for request, rows in outputs.items():
        assert all(torch.equal(row, one) for row, one in zip(rows, drawn_alone(model, kwargs, request), strict=True)), request
    assert all("ESTIMATE" in each for each in phases.values())


def test_a_request_that_ends_early_leaves_the_others_and_gives_its_state_back() -> None:
    model, kwargs = shared_model("dit")
    cached: Any = rfc_fx.transform(model, METHOD, config=ALONE)

    def held() -> int:
        return sum(tensor.nbytes for context in cached.driver.generations for tensor in context.tensors())

    expected = drawn_alone(model, kwargs, 0)
    sizes = []
    for _ in range(2):  # the second pair of requests takes the memory of the first
        with cached.generation() as stays:
            with cached.generation() as leaves:
                for step in range(3):
                    batch = together([call_of(kwargs, request, step) for request in (0, 1)])
                    assert torch.equal(sample(cached.step([stays, leaves], **batch))[:1], expected[step])
            for step in range(3, STEPS):
                assert torch.equal(sample(cached.step([stays], **call_of(kwargs, 0, step))), expected[step])
        sizes.append(held())
    assert sizes[0] == sizes[1]


def test_a_row_without_a_generation_of_its_own_is_refused() -> None:
    model, kwargs = shared_model("dit")
    cached: Any = rfc_fx.transform(model, METHOD, config=ALONE)
    with (
        cached.generation() as one,
        pytest.raises(rfc_fx.SignatureError, match="a generation of its own for each of the 2 rows, got 2, 1 of"),
    ):
        cached.step([one, one], **kwargs)
