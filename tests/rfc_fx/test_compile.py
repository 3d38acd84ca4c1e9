"""Law 5: one compiled frame per phase, no graph break, no recompile, whatever changes from step to step."""

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from drawing import largest_difference, predictions
from families import moved, sample, shared_model
from tolerances import INDUCTOR

import rfc
import rfc_fx
from benchmarks.coverage.specs import all_specs

pytestmark = pytest.mark.usefixtures("captured_once")


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def use_in_every_way(cached: rfc_fx.CachedModel, compiled: Any, plain: rfc_fx.CachedModel, kwargs: dict[str, Any]) -> float:
    """Two generations, another seed, another number of steps, another tau, guidance off for a while: two contexts."""
    worst = largest_difference(predictions(compiled, kwargs, 9), predictions(plain, kwargs, 9))
    worst = max(worst, largest_difference(predictions(compiled, kwargs, 9), predictions(plain, kwargs, 9)))
    seeded = {**kwargs, "hidden_states": torch.randn_like(kwargs["hidden_states"])}
    worst = max(worst, largest_difference(predictions(compiled, seeded, 7), predictions(plain, seeded, 7)))
    cached.method = plain.method = rfc.RFC(tau=0.15)
    worst = max(worst, largest_difference(predictions(compiled, kwargs, 12), predictions(plain, kwargs, 12)))
    with cached.cache_context("uncond"), plain.cache_context("uncond"):
        worst = max(worst, largest_difference(predictions(compiled, kwargs, 9), predictions(plain, kwargs, 9)))
    return worst


@pytest.mark.usefixtures("no_recompiles")
@pytest.mark.parametrize("family", ["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flux", "wan", "pixart", "sd3"))])
def test_law_5_host_dispatch_compiles_one_frame_per_phase(family: str) -> None:
    model, kwargs = shared_model(family)
    cached, plain = (rfc_fx.transform(model, rfc.RFC(tau=0.3)) for _ in range(2))
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    assert use_in_every_way(cached, torch.compile(cached, fullgraph=True, backend=counter), plain, kwargs) == 0
    assert list(cached.programs) == ["PREFIX", "FULL", "ESTIMATE"]
    assert counter.frame_count == 3
    assert not torch._dynamo.utils.counters["graph_break"]


def test_law_5_a_fixed_schedule_needs_two_frames() -> None:
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.TaylorSeer(interval=3, order=1))
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(cached, fullgraph=True, backend=counter)
    predictions(compiled, kwargs, 12)
    cached.method = rfc.TaylorSeer(interval=5, order=1)
    predictions(compiled, kwargs, 12)
    assert counter.frame_count == 2


@pytest.mark.parametrize("family", ["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flux", "wan"))])
def test_law_5_cond_dispatch_is_one_frame(family: str) -> None:
    model, kwargs = shared_model(family)
    cached, plain = (rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(dispatch="cond")) for _ in range(2))
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    assert use_in_every_way(cached, torch.compile(cached, fullgraph=True, backend=counter), plain, kwargs) == 0
    assert counter.frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_what_cond_dispatch_hands_to_both_branches_has_no_layout() -> None:
    """Inductor gave what a convolution made another layout than it told the branches."""
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(dispatch="cond"))
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph.graph)
        return graph.forward

    predictions(torch.compile(cached, fullgraph=True, backend=keep), kwargs, 2)
    [cond] = [node for node in graphs[0].nodes if node.target is torch.ops.higher_order.cond]
    operands = [node.meta["example_value"] for node in cond.args[3] if node.op == "call_method" or node.op == "call_function"]
    assert {len(tensor.shape) for tensor in operands} <= {0, 1}
    assert max(tensor.numel() for tensor in operands) > 100


@pytest.mark.slow
@pytest.mark.compile
def test_law_2_cond_dispatch_of_what_a_convolution_made() -> None:
    spec = all_specs()["HunyuanDiT2DModel"]
    model = spec.model(layers=1)
    kwargs = spec.arguments(model)
    cached, plain = (rfc_fx.transform(model, rfc.RFC(tau=0.15), config=rfc_fx.Config(dispatch="cond")) for _ in range(2))
    assert largest_difference(predictions(torch.compile(cached), kwargs, 9), predictions(plain, kwargs, 9)) <= INDUCTOR


def test_cond_dispatch_works_inside_a_larger_compiled_function() -> None:
    model, kwargs = shared_model("dit")
    cached, plain = (
        rfc_fx.transform(model, rfc.RFC(tau=0.3), example_inputs=moved(kwargs, 0), config=rfc_fx.Config(dispatch="cond")) for _ in range(2)
    )
    cached._prepare((), moved(kwargs, 0))
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")

    @torch.compile(fullgraph=True, backend=counter)
    def sampler_step(arguments: dict[str, Any]) -> torch.Tensor:
        return arguments["hidden_states"] - 0.1 * sample(cached(**arguments)).chunk(2, dim=1)[0]

    with torch.no_grad():
        for i in range(10):
            got = sampler_step(moved(kwargs, i, 10))
            expected = moved(kwargs, i, 10)["hidden_states"] - 0.1 * sample(plain(**moved(kwargs, i, 10))).chunk(2, dim=1)[0]
            assert torch.equal(got, expected)
    assert counter.frame_count == 1
    assert cached.stats.phases == plain.stats.phases


@pytest.mark.compile
@pytest.mark.parametrize("dispatch", ["host", pytest.param("cond", marks=pytest.mark.slow)])
def test_law_2_inductor_agrees_with_the_uncompiled_programs(dispatch: Any) -> None:
    model, kwargs = shared_model("dit", layers=2 if dispatch == "host" else 1)  # a cond compiles both branches with every block
    cached, plain = (rfc_fx.transform(model, rfc.RFC(tau=0.3, order=2), config=rfc_fx.Config(dispatch=dispatch)) for _ in range(2))
    compiled = torch.compile(cached, fullgraph=True)
    assert largest_difference(predictions(compiled, kwargs, 9), predictions(plain, kwargs, 9)) <= INDUCTOR
    assert cached.stats.phases == plain.stats.phases
    assert {"FULL", "ESTIMATE"} == set(cached.stats.phases[3:])


@pytest.mark.usefixtures("no_recompiles")
def test_a_recompilation_would_be_noticed() -> None:
    twice = torch.compile(lambda x, n: x * n, backend="eager", dynamic=False)
    twice(torch.ones(2), 2)
    with pytest.raises(torch._dynamo.exc.RecompileError):
        twice(torch.ones(2), 3)
