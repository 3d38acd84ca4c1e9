"""The laws of the design, for five families: full is the model, and every form of a method gives the same numbers."""

import random
from functools import partial
from typing import Any

import pytest
import torch
from choosing import turns
from drawing import difference, generation
from families import FAMILIES, moved, sample, shared_model
from tolerances import ROUNDED_STATE, SAME_GRAPH
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from rfc.bookkeeping import clock_tensors
from rfc.state import zeros
from rfc_fx.passes.guard import Reference

ESTIMATORS = {
    "reuse": rfc.Reuse(),
    "taylor2": rfc.Taylor(order=2),
    "rfe1": rfc.RFE(order=1),
    "rfe2": rfc.RFE(order=2),
    "rfe2-token": rfc.RFE(order=2, norm="token"),
    "predictor-corrector": rfc.PredictorCorrector(),
    "projective2": rfc.Projective(order=2),
    "rfe1-sketch-int8": rfc.Stored(estimator=rfc.RFE(order=1, sketch=4), differences=torch.int8),
    "taylor2-float8-bfloat16": rfc.Stored(estimator=rfc.Taylor(order=2), differences=torch.float8_e4m3fn, outputs=torch.bfloat16),
}
STEPS = 10

pytestmark = pytest.mark.usefixtures("captured_once")

MADE = {name: partial(shared_model, name) for name in FAMILIES}
"""One model of each family: no test here changes it."""

SOME = [pytest.param(family, marks=() if family in ("dit", "flux") else pytest.mark.slow) for family in FAMILIES]
"""Families with one and with two streams; the others differ in what they are given."""


def listed(estimator: rfc.Estimator, phases: str) -> rfc.Method:
    return rfc.Method(estimator=estimator, schedule=rfc.Listed(full_steps=[i for i, phase in enumerate(phases) if phase == "F"]))


def strings(count: int, seed: int = 0) -> list[str]:
    """Random phase strings that begin with a full step."""
    draw = random.Random(seed)
    return ["F" + "".join(draw.choice("FEE") for _ in range(STEPS - 1)) for _ in range(count)]


@torch.no_grad()
def reference(cached: rfc_fx.CachedModel, kwargs: dict[str, Any], phases: str) -> Tensor:
    """The guarded graph run node by node with the given phases."""
    guarded = cached.guarded
    state = zeros(guarded.slots, torch.device("cpu"))
    bookkeeping = rfc.Record()
    outputs = []
    for i, phase in enumerate(phases):
        named = {name: moved(kwargs, i, STEPS)[argument] for name, argument in cached.compiled.captured.names.items()}
        clock = clock_tensors(bookkeeping.clock(rfc.Listed(full_steps=[0])), torch.device("cpu"))
        full = "FULL" if phase == "F" else "ESTIMATE"
        outputs.append(Reference(guarded, state, clock).run(full, *named.values())[0])
        now = rfc.Listed(full_steps=[0, i] if phase == "F" else [0])
        bookkeeping.decide(now, now.numbers(), None, None)
    return torch.stack(outputs)


@pytest.mark.parametrize(("family", "dispatch", "granularity"), turns(FAMILIES, ["host", "cond"], ["module", "block", "stack"]))
def test_law_1_all_full_is_the_model_bit_for_bit(family: str, dispatch: Any, granularity: Any) -> None:
    model, kwargs = MADE[family]()
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0), config=rfc_fx.Config(granularity=granularity, dispatch=dispatch))
    assert torch.equal(generation(cached, kwargs, 4), generation(model, kwargs, 4))
    assert cached.stats.phases == ["FULL"] * 4


@pytest.mark.parametrize(("family", "estimator"), turns(FAMILIES, ESTIMATORS))
def test_law_2_twin_guarded_and_programs_agree_for_random_phases(family: str, estimator: str) -> None:
    model, kwargs = MADE[family]()
    method = ESTIMATORS[estimator]
    cached = rfc_fx.transform(model, listed(method, "F"), example_inputs=moved(kwargs, 0, STEPS))
    for phases in strings(3):
        cached.method = listed(method, phases)
        got = generation(cached, kwargs)
        assert "".join(phase[0] for phase in cached.stats.phases) == phases
        assert difference(got, generation(rfc.eager.cached(model, listed(method, phases)), kwargs)) <= SAME_GRAPH
        assert difference(got, reference(cached, kwargs, phases)) <= SAME_GRAPH


@pytest.mark.parametrize(("family", "granularity"), turns(FAMILIES, ["stack", "module", "block"]))
def test_law_2_guarded_host_and_cond_agree_at_every_granularity(family: str, granularity: Any) -> None:
    model, kwargs = MADE[family]()
    method = rfc.RFE(order=2)
    host, cond = (
        rfc_fx.transform(
            model,
            listed(method, "F"),
            example_inputs=moved(kwargs, 0, STEPS),
            config=rfc_fx.Config(granularity=granularity, dispatch=dispatch),
        )
        for dispatch in ("host", "cond")
    )
    for phases in strings(2, seed=1):
        host.method = cond.method = listed(method, phases)
        got = generation(host, kwargs)
        assert difference(got, reference(host, kwargs, phases)) <= SAME_GRAPH
        assert difference(got, generation(cond, kwargs)) <= SAME_GRAPH
        assert host.stats.phases == cond.stats.phases


@pytest.mark.parametrize("family", SOME)
def test_law_2_data_driven_decisions_are_the_same_in_twin_host_and_cond(family: str) -> None:
    model, kwargs = MADE[family]()
    forms: list[nn.Module] = [rfc.eager.cached(model, rfc.RFC(tau=0.3, order=2))]
    forms += [rfc_fx.transform(model, rfc.RFC(tau=0.3, order=2), config=rfc_fx.Config(dispatch=dispatch)) for dispatch in ("host", "cond")]
    twin, host, cond = ((generation(form, kwargs), form.stats) for form in forms)
    assert {"FULL", "ESTIMATE"} == set(host[1].phases[3:])
    assert twin[1].phases == host[1].phases == cond[1].phases
    assert twin[1].eps == host[1].eps == cond[1].eps
    assert twin[1].totals == host[1].totals == cond[1].totals
    assert difference(twin[0], host[0]) <= SAME_GRAPH
    assert difference(cond[0], host[0]) <= SAME_GRAPH


@pytest.mark.parametrize(("family", "estimator"), turns(["dit", "flux"], ESTIMATORS))
def test_law_3_an_estimate_with_unchanged_inputs_is_the_full_output(family: str, estimator: str) -> None:
    model, kwargs = MADE[family]()
    cached = rfc_fx.transform(model, listed(ESTIMATORS[estimator], "FFE"))
    with torch.no_grad():
        first, second, third = (sample(cached(**kwargs)) for _ in range(3))
    assert cached.stats.phases == ["FULL", "FULL", "ESTIMATE"]
    assert torch.equal(first, second)
    if getattr(ESTIMATORS[estimator], "outputs", None) is None:
        assert torch.equal(second, third)
    else:  # the output itself is rounded, at every site
        assert 0 < difference(third, second) <= ROUNDED_STATE


@pytest.mark.parametrize("family", SOME)
def test_law_4_tau_zero_is_always_full_and_tau_infinite_never_after_warm_up(family: str) -> None:
    model, kwargs = MADE[family]()
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0))
    generation(cached, kwargs, 6)
    assert cached.stats.phases == ["FULL"] * 6
    cached.method = rfc.RFC(tau=float("inf"))
    generation(cached, kwargs, 6)
    assert cached.stats.phases == ["FULL"] * 3 + ["ESTIMATE"] * 3


@pytest.mark.parametrize(("family", "dispatch"), turns(FAMILIES, ["host", "cond"]))
def test_law_7_weights_are_shared_and_state_is_what_the_plan_announced(family: str, dispatch: Any) -> None:
    model, kwargs = MADE[family]()
    before = {id(parameter) for parameter in model.parameters()}
    cached = rfc_fx.transform(model, rfc.RFC(order=2), example_inputs=moved(kwargs, 0), config=rfc_fx.Config(dispatch=dispatch))
    announced = cached.plan()
    generation(cached, kwargs, 5)
    assert {id(parameter) for parameter in cached.parameters()} == before
    for program in cached.programs.values():
        assert {id(parameter) for parameter in program.module.parameters()} <= before
    (context,) = cached.driver.generations
    assert sum(tensor.nbytes for tensor in context.state.values()) == announced.state_bytes == sum(row.bytes for row in announced.slots)
    assert {name: (tuple(t.shape), t.dtype) for name, t in context.state.items()} == {r.name: (r.shape, r.dtype) for r in announced.slots}


@pytest.mark.parametrize("family", SOME)
def test_state_keeps_its_addresses_over_generations(family: str) -> None:
    model, kwargs = MADE[family]()
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), example_inputs=moved(kwargs, 0))
    generation(cached, kwargs, 6)
    (context,) = cached.driver.generations
    before = {name: tensor.data_ptr() for name, tensor in context.state.items()}
    for _ in range(2):
        generation(cached, kwargs, 6)
    assert {name: tensor.data_ptr() for name, tensor in context.state.items()} == before


@pytest.mark.parametrize(("family", "dispatch"), turns(FAMILIES, ["cond", "host"]))
def test_law_9_a_result_never_depends_on_an_earlier_generation(family: str, dispatch: Any) -> None:
    model, kwargs = MADE[family]()
    method = rfc.RFC(tau=0.3, order=2)
    fresh = rfc_fx.transform(model, method, config=rfc_fx.Config(dispatch=dispatch))
    expected = generation(fresh, kwargs)
    used = rfc_fx.transform(model, method, config=rfc_fx.Config(dispatch=dispatch))
    other = {**kwargs, "hidden_states": torch.full_like(kwargs["hidden_states"], float("nan"))}
    generation(used, other, 3)  # not a number everywhere: nothing of it may be left
    assert torch.equal(generation(used, kwargs), expected)
    generation(used, kwargs, 7)  # left in the middle; the timestep then moves back towards the noise
    assert torch.equal(generation(used, kwargs), expected)


def test_estimate_does_no_work_of_a_site_and_its_share_is_counted() -> None:
    for family, largest in (("dit", 0.25), ("pixart", 0.15), ("sd3", 0.1), ("flux", 0.1), ("wan", 0.1)):
        model, kwargs = MADE[family]()
        cached = rfc_fx.transform(model, rfc.RFC(), example_inputs=kwargs)
        assert not [node for node in cached.programs["ESTIMATE"].graph.nodes if node.op == "call_module"]
        assert 0 < cached.plan().estimate_share < largest
