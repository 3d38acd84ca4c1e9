"""Repeated blocks as one region: fewer things to compile, the same numbers to the last bit."""

from typing import Any

import pytest
import torch
from drawing import difference, generation
from families import FAMILIES, moved, shared_model
from tolerances import INDUCTOR

import rfc
import rfc_fx

pytestmark = pytest.mark.usefixtures("captured_once")

LAYERS = 3
LAYERS_OF = {"flux": 4}  # of each kind the first block is another one
METHODS = {
    "fora": rfc.FORA(interval=3),
    "taylorseer": rfc.TaylorSeer(interval=3, order=2),
    "rfc": rfc.RFC(tau=0.3, order=2),
    "projective": rfc.Method(estimator=rfc.Projective(order=2), schedule=rfc.RCS(tau=0.3)),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def transformed(
    family: str, method: rfc.Method, layers: int | None = None, *, own: bool = False
) -> tuple[rfc_fx.CachedModel, rfc_fx.CachedModel, dict[str, Any]]:
    """The same model with regions and without; `own`: a model that may be changed."""
    layers = LAYERS_OF.get(family, LAYERS) if layers is None else layers
    model, kwargs = FAMILIES[family](layers=layers) if own else shared_model(family, layers)
    regional, straight = (
        rfc_fx.transform(model, method, example_inputs=moved(kwargs, 0), config=rfc_fx.Config(regional=flag)) for flag in (True, False)
    )
    return regional, straight, kwargs


def calls(cached: rfc_fx.CachedModel, phase: str) -> list[str]:
    return [str(node.target) for node in cached.programs[phase].run.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(pytest.param(family, "rfc", marks=() if family == "flux" else pytest.mark.slow) for family in FAMILIES),
        *(pytest.param("dit", method, marks=() if method == "fora" else pytest.mark.slow) for method in METHODS if method != "rfc"),
    ],
)
def test_regions_change_no_bit_of_any_output(family: str, method: str) -> None:
    regional, straight, kwargs = transformed(family, METHODS[method])
    assert len(calls(regional, "ESTIMATE")) >= 2
    assert torch.equal(generation(regional, kwargs), generation(straight, kwargs))
    assert regional.stats.phases == straight.stats.phases
    assert {"FULL", "ESTIMATE"} == set(regional.stats.phases)


def test_blocks_that_differ_only_in_weights_and_state_are_one_region() -> None:
    regional, _, _ = transformed("dit", METHODS["rfc"])
    # the first block's modulation is part of PREFIX, so that block is another
    assert calls(regional, "FULL") == calls(regional, "ESTIMATE") == ["block_0"] * (LAYERS - 1)
    assert calls(regional, "PREFIX") == []


def test_two_kinds_of_blocks_are_two_regions() -> None:
    regional, _, _ = transformed("flux", METHODS["rfc"])
    assert set(calls(regional, "FULL")) == {"block_0", "block_1"}


def test_a_program_in_which_no_block_repeats_stays_as_it_is() -> None:
    regional, _, _ = transformed("dit", METHODS["rfc"], layers=2)
    for program in regional.programs.values():
        assert program.run is program.module


def test_regions_read_weights_live() -> None:
    regional, straight, kwargs = transformed("dit", METHODS["rfc"], own=True)
    before = generation(regional, kwargs)
    with torch.no_grad():
        for parameter in regional.model.parameters():
            parameter.mul_(1.01)
    regional.reset()
    after = generation(regional, kwargs)
    assert not torch.equal(before, after)
    assert torch.equal(after, generation(straight, kwargs))


def regions_compiled(layers: int) -> tuple[int, list[int]]:
    """Frames, and the number of different regions that a backend gets in each."""
    seen: list[int] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(len(list(module.children())))
        return module

    regional, straight, kwargs = transformed("dit", METHODS["fora"], layers)
    assert torch.equal(generation(torch.compile(regional, fullgraph=True, backend=backend), kwargs), generation(straight, kwargs))
    return len(seen), seen


def test_law_5_with_regions_and_what_is_compiled_does_not_grow_with_depth() -> None:
    frames, regions = regions_compiled(3)
    assert frames == 2
    assert regions == [1, 1]
    assert regions_compiled(4) == (frames, regions)


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_writes_state_through_a_region() -> None:
    regional, straight, kwargs = transformed("dit", METHODS["rfc"], layers=3)
    got, expected = generation(torch.compile(regional, fullgraph=True), kwargs), generation(straight, kwargs)
    assert difference(got, expected) <= INDUCTOR
    for index, (state, other) in enumerate(zip(regional.driver.generations, straight.driver.generations, strict=True)):
        for slot in state.state:
            torch.testing.assert_close(state.state[slot], other.state[slot], rtol=1e-3, atol=1e-4, msg=f"context {index}: {slot}")


def test_a_block_whose_weights_share_memory_stays_inline() -> None:
    model, kwargs = FAMILIES["dit"](layers=LAYERS)
    for block in model.transformer_blocks:
        q, k = block.attn1.to_q, block.attn1.to_k
        fused = torch.cat([q.weight.detach(), k.weight.detach()])
        q.weight, k.weight = (torch.nn.Parameter(half) for half in fused.chunk(2))
    cached = rfc_fx.transform(model, METHODS["rfc"], example_inputs=moved(kwargs, 0), config=rfc_fx.Config(regional=True))
    assert calls(cached, "ESTIMATE") == ["block_0"] * (LAYERS - 1)  # reads neither
    assert not any(target.startswith("block_") for target in calls(cached, "FULL"))
    generation(torch.compile(cached, fullgraph=True, backend="eager"), kwargs)


@pytest.mark.slow
def test_a_weight_used_twice_in_a_block_is_one_argument() -> None:
    model, kwargs = FAMILIES["dit"](layers=LAYERS)
    for block in model.transformer_blocks:
        block.attn1.to_k.weight = block.attn1.to_q.weight
    regional, straight = (rfc_fx.transform(model, METHODS["rfc"], config=rfc_fx.Config(regional=flag)) for flag in (True, False))
    assert torch.equal(generation(torch.compile(regional, fullgraph=True, backend="eager"), kwargs), generation(straight, kwargs))
    assert calls(regional, "FULL") == ["block_0"] * (LAYERS - 1)
