"""Every published method is a phase of the same guarded graph: equal to its twin, without graph breaks, with its own granularity."""

import inspect
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from choosing import rotated, turns
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from drawing import difference, generation
from families import FAMILIES, shared_model
from tolerances import INDUCTOR, SAME_GRAPH

import rfc
import rfc.eager
import rfc_fx
from benchmarks.coverage.specs import all_specs
from rfc_fx.errors import NoSiteError, RFCError

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 10

METHODS: dict[str, rfc.Method] = {
    "fora": rfc.FORA(interval=3),
    "taylorseer": rfc.TaylorSeer(interval=3, order=2),
    "taylorseer-lite": rfc.TaylorSeerLite(interval=3),
    "hicache": rfc.HiCache(interval=3),
    "foca": rfc.FoCa(interval=3),
    "delta-dit": rfc.DeltaDiT(interval=3, first=1),
    "delta-dit-front": rfc.DeltaDiT(interval=3, first=0, last=1),
    "teacache": rfc.TeaCache(threshold=0.3, coefficients=(0.5, 1.0, 0.01), num_steps=STEPS),
    "first-block": rfc.FirstBlockCache(threshold=0.3),
    "dbcache": rfc.FirstBlockCache(threshold=0.3, tail=1),
    "dicache": rfc.DiCache(threshold=0.3, warmup=3),
    "easycache": rfc.EasyCache(threshold=0.3, warmup=2, num_steps=STEPS),
    "spectrum": rfc.Spectrum(num_steps=STEPS, warmup=3, weight=0.5),
    "seacache": rfc.SeaCache(DDIMScheduler(), threshold=0.3, grid=(4, 4), num_steps=STEPS),
    "magcache": rfc.MagCache(ratios=[1.0, 1.01, 0.97, 1.02, 0.99, 1.0, 0.98, 1.01, 1.0, 0.96]),
    "speca": rfc.SpeCa(base=0.1, order=2, min_drafts=1, num_steps=STEPS),
    "newton": rfc.NewtonRCS(tau=0.3),
    "chebyshev": rfc.Chebyshev(nfc=5, num_steps=STEPS),
    "log-snr": rfc.LogSNR(DDIMScheduler(), STEPS, 5),
    "log-snr-flow": rfc.LogSNR(FlowMatchEulerDiscreteScheduler(shift=3.0), STEPS, 5),
    "log-snr-flow-blocks": replace(rfc.LogSNR(FlowMatchEulerDiscreteScheduler(), STEPS, 5), granularity="blocks[1:]"),
    "weighted": rfc.Method(
        estimator=rfc.LinearPrediction(order=3),
        schedule=rfc.Weighted(full_steps=[0, 1, 4, 7], num_steps=STEPS, weights=[(0.3 + 0.05 * i, -0.1, 0.4) for i in range(STEPS)]),
        granularity="stack",
        name="fitted",
    ),
}

TWO_PHASES = [name for name, method in METHODS.items() if len(method.schedule.branches) == 2]

BLOCKS = 3
"""Where ranges of blocks are the subject."""

STRUCTURAL = ("taylorseer-lite", "first-block", "dicache", "speca", "log-snr-flow")
"""Methods whose graphs differ in more than numbers from those of other methods: one for each granularity, probe and phase."""


DECIDED = (*STRUCTURAL, "teacache", "easycache", "seacache", "magcache", "newton", "weighted")
"""Of two phases those whose decisions differ; the others share theirs with one of these and differ in their estimators."""


def pairs(families: Iterable[str], methods: Iterable[str], always: Iterable[str], partners: int = 1) -> list[Any]:
    """Each method of `always` with one family in turn, structural ones with `partners`; the other pairs run with the slow tests."""
    names, few = list(methods), list(always)
    tested = {*rotated(families, few), *rotated(families, [name for name in few if name in STRUCTURAL], partners)}
    product = [(family, name) for family in families for name in names]
    return [pytest.param(*pair, marks=() if pair in tested else pytest.mark.slow) for pair in product]


MADE = {name: partial(shared_model, name, layers=BLOCKS) for name in FAMILIES}
"""One model of each family: no test here changes it."""


def made(family: str, method: str) -> Any:
    """That model with as many blocks as the method needs."""
    return shared_model(family, layers=BLOCKS if method == "dbcache" else 2)


def close(a: list[float | None], b: list[float | None]) -> bool:
    """The same numbers up to rounding (of differences of numbers near 1, too), None where the other has None."""
    near = [x is y if x is None or y is None else abs(x - y) <= SAME_GRAPH * (1 + abs(y)) for x, y in zip(a, b, strict=True)]
    return all(near)


@pytest.mark.parametrize(("family", "method"), pairs(FAMILIES, METHODS, METHODS, partners=2))
def test_every_method_takes_the_decisions_and_has_the_outputs_of_its_twin(family: str, method: str) -> None:
    model, kwargs = made(family, method)
    twin, graph = rfc.eager.cached(model, METHODS[method]), rfc_fx.transform(model, METHODS[method])
    for _ in range(2):  # the second begins with what the first left in the state
        expected, got = generation(twin, kwargs), generation(graph, kwargs)
        assert graph.stats.phases == twin.stats.phases
        assert close(graph.stats.eps, twin.stats.eps)
        assert 1 <= graph.stats.nfc < STEPS
        assert difference(got, expected) <= SAME_GRAPH


@pytest.mark.parametrize(("family", "method"), pairs(["dit", "flux"], TWO_PHASES, [name for name in TWO_PHASES if name in DECIDED]))
def test_every_method_of_two_phases_is_the_same_as_one_graph_with_its_decision(family: str, method: str) -> None:
    model, kwargs = made(family, method)
    host, cond = (rfc_fx.transform(model, METHODS[method], config=rfc_fx.Config(dispatch=dispatch)) for dispatch in ("host", "cond"))
    assert difference(generation(cond, kwargs), generation(host, kwargs)) <= SAME_GRAPH
    assert cond.stats.phases == host.stats.phases
    if METHODS[method].schedule.watches:  # otherwise one graph counts nothing as 0, the host as None
        assert close(cond.stats.totals, host.stats.totals)


@pytest.mark.filterwarnings("ignore::rfc_fx.StepsMismatchWarning")
@pytest.mark.usefixtures("no_recompiles")
@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name in ("taylorseer-lite", "dicache", "speca") else pytest.mark.slow) for name in METHODS],
)
def test_every_method_compiles_one_frame_per_program_without_a_graph_break(method: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, kwargs = made("dit", method)
    cached, plain = (rfc_fx.transform(model, METHODS[method]) for _ in range(2))
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(cached, fullgraph=True, backend=counter)
    for steps in (STEPS, STEPS - 2, STEPS):
        assert difference(generation(compiled, kwargs, steps), generation(plain, kwargs, steps)) <= SAME_GRAPH
    ran = {"FULL", *cached.stats.phases} | {name for name in cached.programs if name == "PREFIX"}
    assert counter.frame_count == len(ran)
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.slow  # law 2 of test_compile has Inductor, the test above has the frames
@pytest.mark.compile
@pytest.mark.parametrize("method", ["teacache", "dicache", "speca"])
def test_compiled_by_inductor_the_new_phases_are_the_same(method: str) -> None:
    torch._dynamo.reset()
    model, kwargs = made("dit", method)
    cached, plain = (rfc_fx.transform(model, METHODS[method], config=rfc_fx.Config(hoist=True)) for _ in range(2))
    got = generation(torch.compile(cached, fullgraph=True), kwargs)
    assert difference(got, generation(plain, kwargs)) <= INDUCTOR
    assert cached.stats.phases == plain.stats.phases
    torch._dynamo.reset()


NEVER = {"teacache": rfc.TeaCache(threshold=0.0), "first-block": rfc.FirstBlockCache(threshold=0.0), "dicache": rfc.DiCache(threshold=0.0)}


@pytest.mark.parametrize(("family", "method"), turns(FAMILIES, NEVER))
def test_law_1_all_full_is_the_model_bit_for_bit_behind_probes_and_ranges(family: str, method: str) -> None:
    model, kwargs = made(family, method)
    cached = rfc_fx.transform(model, NEVER[method])
    assert torch.equal(generation(cached, kwargs, 4), generation(model, kwargs, 4))
    assert cached.stats.phases == ["FULL"] * 4


@pytest.mark.filterwarnings("ignore::rfc_fx.NothingSkippedWarning")
@pytest.mark.parametrize("family", ["dit", *(pytest.param(family, marks=pytest.mark.slow) for family in ("sd3", "flux"))])
def test_law_9_what_a_schedule_remembers_of_all_steps_is_not_seen_by_the_next_generation(family: str) -> None:
    model, kwargs = shared_model(family)
    for method in (METHODS["teacache"], METHODS["easycache"], METHODS["seacache"], METHODS["dicache"], METHODS["speca"]):
        expected = generation(rfc_fx.transform(model, method), kwargs)
        used = rfc_fx.transform(model, method)
        generation(used, {**kwargs, "hidden_states": torch.full_like(kwargs["hidden_states"], float("nan"))}, 3)
        assert torch.equal(generation(used, kwargs), expected)


def test_a_range_of_blocks_leaves_the_others_in_every_step_and_costs_what_they_cost() -> None:
    model, kwargs = MADE["dit"]()
    shares = []
    for first in range(BLOCKS):
        plan = rfc_fx.transform(model, rfc.DeltaDiT(first=first), example_inputs=kwargs).plan()
        assert plan.sites == [f"blocks[{first}:]"]
        shares.append(plan.estimate_share)
    assert shares == sorted(shares)
    assert shares[0] < 0.3 < shares[1] < shares[2] < 1


def test_the_last_block_is_verified_at_the_price_of_a_block() -> None:
    model, kwargs = MADE["dit"]()
    plan = rfc_fx.transform(model, METHODS["speca"], example_inputs=kwargs).plan()
    block = (plan.full_flops - plan.estimate_flops) / BLOCKS
    assert plan.phase_flops["VERIFY"] - plan.estimate_flops == pytest.approx(block, rel=0.01)


def test_what_only_a_verified_block_computes_is_not_remembered() -> None:
    """CogVideoX's last feed-forward alone reads its attention: no estimate needs that where the feed-forward is estimated."""
    spec = all_specs()["CogVideoXTransformer3DModel"]
    model = spec.model(layers=2)
    kwargs = spec.arguments(model)
    twin, graph = rfc.eager.cached(model, METHODS["speca"]), rfc_fx.transform(model, METHODS["speca"])
    expected, got = generation(twin, kwargs), generation(graph, kwargs)
    assert graph.stats.phases == twin.stats.phases
    assert "VERIFY" in graph.stats.phases
    assert close(graph.stats.eps, twin.stats.eps)
    assert difference(got, expected) <= SAME_GRAPH


def test_a_verified_block_around_unchanged_inputs_has_no_error() -> None:
    """AuraFlow's feed-forward is added to what its attention began with."""
    spec = all_specs()["AuraFlowTransformer2DModel"]
    model = spec.model(layers=2)
    kwargs = spec.arguments(model)
    graph = rfc_fx.transform(model, rfc.SpeCa(base=0.1, order=1, min_drafts=1, num_steps=STEPS))
    with graph.generation(), torch.no_grad():
        for step in range(STEPS):
            call = kwargs | {"timestep": kwargs["timestep"] - 1e-6 * step}
            assert difference(graph(**call).sample, model(**call).sample) <= SAME_GRAPH
    errors = [error for error in graph.stats.eps if error is not None]
    assert "VERIFY" in graph.stats.phases
    assert max(errors) <= SAME_GRAPH


def test_state_of_coarser_methods_is_a_few_tensors() -> None:
    model, kwargs = MADE["dit"]()
    whole = {
        name: rfc_fx.transform(model, METHODS[name], example_inputs=kwargs).plan().state_bytes
        for name in ("taylorseer", "taylorseer-lite", "first-block", "teacache")
    }
    one = whole["first-block"] / 2  # the residual, and what the first block added
    assert whole["teacache"] == 2 * one  # the residual, and the input of the step before
    assert whole["taylorseer-lite"] == 3 * one
    assert whole["taylorseer"] == 2 * BLOCKS * 3 * one


PROBE_BEHIND = rfc.Method(estimator=rfc.Reuse(), schedule=rfc.AnchorChange(threshold=0.1), granularity="blocks[0:1]", probe=1)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            rfc.DeltaDiT(first=9),
            "DiTTransformer2DModel: granularity blocks[9:] chooses none of the 3 blocks; expected blocks[a:b]",
        ),
        (rfc.FirstBlockCache(blocks=2, tail=1), "chooses none of the 3 blocks"),
        (rfc.FirstBlockCache(blocks=3), "chooses none of the 3 blocks"),
        (PROBE_BEHIND, "lies inside blocks[0:1]"),
        (rfc.DiCache(depth=3), "no block number 3"),
    ],
)
def test_ranges_and_probes_that_a_model_has_not_are_refused(method: rfc.Method, said: str) -> None:
    model, kwargs = MADE["dit"]()
    with pytest.raises(NoSiteError) as error:
        rfc_fx.transform(model, method, example_inputs=kwargs)
    assert said in str(error.value)


def test_a_granularity_against_the_methods_own_is_refused() -> None:
    model, _ = MADE["dit"]()
    with pytest.raises(ValueError, match="transform: granularity: TeaCache works on 'stack', got 'module'; leave granularity out"):
        rfc_fx.transform(model, rfc.TeaCache(), config=rfc_fx.Config(granularity="module"))
    with pytest.raises(ValueError, match=r"granularity must be one of module, block, stack, output, prediction, blocks\[a:b\]"):
        rfc_fx.transform(model, config=rfc_fx.Config(granularity="layer"))


def test_more_than_two_phases_are_refused_as_one_cond() -> None:
    model, kwargs = MADE["dit"]()
    with pytest.raises(RFCError, match=r"Verified has the phases FULL, ESTIMATE, VERIFY, a torch\.cond has two; use dispatch='host'"):
        rfc_fx.transform(model, rfc.SpeCa(), example_inputs=kwargs, config=rfc_fx.Config(dispatch="cond"))


def test_every_method_of_the_package_is_tested_here() -> None:
    functions = {
        name for name, make in inspect.getmembers(rfc, inspect.isfunction) if inspect.signature(make).return_annotation == "Method"
    }
    elsewhere = {"preset", "RFC", "FullCompute", "ToCa", "DuCa", "DisCa", "refined"}  # test_laws, test_token_wise, test_graft, test_refined
    assert functions - elsewhere == {method.name for method in METHODS.values()}
    assert all(METHODS[name].granularity == "stack" for name in ("teacache", "dicache", "easycache", "seacache", "magcache"))
