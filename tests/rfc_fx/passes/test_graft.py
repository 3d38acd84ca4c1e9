"""DisCa in the guarded graph: a predictor's operations are the estimate, and every form of the method gives the same numbers."""

from functools import partial
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
import torch._dynamo.testing
from drawing import difference, largest_difference
from families import FAMILIES, moved, shared_model
from predictors import random_predictor
from tolerances import SAME_GRAPH
from torch.utils.flop_counter import FlopCounterMode

import rfc
import rfc.eager
import rfc_fx
from rfc.bookkeeping import clock_tensors
from rfc.state import zeros
from rfc_fx.ir.ops import is_heavy, recall
from rfc_fx.passes.guard import Reference
from rfc_fx.zoo import DIGITS_PREDICTOR, digits_noise, load_digits, sample

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS, FULL = 6, (0, 1, 4)
predictions = partial(drawing.predictions, steps=STEPS)

LAYERS, BLOCKS = 2, 1

CHANNELS = {"dit": 16, "pixart": 16, "wan": 24}
"""Families of one stream, and its width."""


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, kwargs = shared_model("dit", layers=LAYERS)
    return model, kwargs, random_predictor(model, tmp_path_factory.mktemp("predictor"), 16, BLOCKS)


@pytest.mark.parametrize("family", ["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pixart", "wan"))])
def test_laws_1_and_2_all_full_is_the_model_and_twin_guarded_host_and_cond_agree(family: str, tmp_path: Path) -> None:
    model, kwargs = shared_model(family, layers=LAYERS)
    folder = random_predictor(model, tmp_path, CHANNELS[family], BLOCKS)
    method, every = rfc.DisCa(predictor=folder, full_steps=FULL), rfc.DisCa(predictor=folder, full_steps=range(STEPS))
    real, twin = predictions(model, kwargs), predictions(rfc.eager.cached(model, method), kwargs)
    assert largest_difference(twin, real) > 0.01  # the predictor is random: skipped steps are far off
    host = rfc_fx.transform(model, method)
    assert largest_difference(predictions(host, kwargs), twin) == 0
    assert host.stats.phases == ["FULL" if step in FULL else "ESTIMATE" for step in range(STEPS)]
    assert largest_difference(predictions(host, kwargs), twin) == 0  # a second generation
    assert largest_difference(reference(host, kwargs), twin) <= SAME_GRAPH
    host.method = every
    assert largest_difference(predictions(host, kwargs), real) == 0
    cond = rfc_fx.transform(model, method, config=rfc_fx.Config(dispatch="cond"))
    assert largest_difference(predictions(cond, kwargs), twin) <= SAME_GRAPH
    cond.method = every
    assert largest_difference(predictions(cond, kwargs), real) == 0


@pytest.mark.parametrize("how", [{"hoist": True}, {"regional": True}, {"decision": "per_sample"}], ids=str)
def test_law_2_what_is_hoisted_shared_or_decided_alone_is_the_same(dit: Any, how: Any) -> None:
    model, kwargs, folder = dit
    method = rfc.DisCa(predictor=folder, full_steps=FULL)
    twin = predictions(rfc.eager.cached(model, method), kwargs)
    cached = rfc_fx.transform(model, method, config=rfc_fx.Config(**how))
    assert largest_difference(predictions(cached, kwargs), twin) <= SAME_GRAPH * LAYERS  # a batch of one may meet other kernels


@torch.no_grad()
def reference(cached: rfc_fx.CachedModel, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The guarded graph run node by node."""
    state, bookkeeping, outputs = zeros(cached.guarded.slots, torch.device("cpu")), rfc.Record(), []
    schedule = cached.method.schedule
    for i in range(STEPS):
        named = {name: moved(kwargs, i, STEPS)[argument] for name, argument in cached.compiled.captured.names.items()}
        clock = clock_tensors(bookkeeping.clock(schedule), torch.device("cpu"))
        phase = bookkeeping.decide(schedule, schedule.numbers(), None, None)
        outputs.append(Reference(cached.guarded, state, clock).run(phase, *named.values())[0])
    return outputs


@pytest.mark.usefixtures("no_recompiles")
@pytest.mark.parametrize("dispatch", ["host", pytest.param("cond", marks=pytest.mark.slow)])
def test_law_5_one_frame_per_phase_without_a_break_whatever_the_list(dit: Any, dispatch: Any) -> None:
    model, kwargs, folder = dit
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cached, plain = (
        rfc_fx.transform(model, rfc.DisCa(predictor=folder, full_steps=FULL), config=rfc_fx.Config(dispatch=dispatch)) for _ in range(2)
    )
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(cached, fullgraph=True, backend=counter)
    for steps in (FULL, (0, 5)):
        cached.method = plain.method = rfc.DisCa(predictor=folder, full_steps=steps)
        assert largest_difference(predictions(compiled, kwargs), predictions(plain, kwargs)) <= SAME_GRAPH
        assert cached.stats.phases == plain.stats.phases
    assert counter.frame_count == (2 if dispatch == "host" else 1)
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def test_law_6_a_skipped_step_runs_the_predictors_blocks_and_none_of_the_models(dit: Any) -> None:
    model, kwargs, folder = dit
    cached = rfc_fx.transform(model, rfc.DisCa(predictor=folder, full_steps=FULL), example_inputs=kwargs)
    for phase, blocks, weights in (("FULL", LAYERS, "model.transformer_blocks"), ("ESTIMATE", BLOCKS, "predictor.blocks")):
        nodes = [
            node
            for program in [cached.programs[phase].module]
            for part in program.modules()
            if isinstance(part, torch.fx.GraphModule)
            for node in part.graph.nodes
        ]
        assert sum(node.target is torch.ops.aten.scaled_dot_product_attention.default for node in nodes) == blocks
        read = {str(source.target) for node in nodes if is_heavy(node) for source in node.all_input_nodes if source.op == "get_attr"}
        assert any(name.startswith(weights) for name in read)
        own = {name for name in read if name.startswith(("model.transformer_blocks", "predictor.blocks")) and not name.startswith(weights)}
        assert {name.split(".norm1.emb.")[0] for name in own} <= {"model.transformer_blocks.0"}  # which the last layer borrows from
        assert all(".norm1.emb." in name for name in own)
        assert not any(node.target is recall for node in nodes)
    assert not cached.programs["ESTIMATE"].written()
    assert [row.name for row in cached.plan().slots] == ["stack.O"]
    predictions(cached, kwargs, steps=1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cached(**moved(kwargs, 2, STEPS))
        cached(**moved(kwargs, 3, STEPS))
    assert cached.stats.phases[-2:] == ["FULL", "ESTIMATE"]
    attention = (LAYERS + BLOCKS) * 4 * 2 * 16 * 16 * 16  # which the counter does not know on a CPU: samples, tokens squared, channels
    assert counter.get_total_flops() + attention == cached.plan().full_flops + cached.plan().estimate_flops
    assert BLOCKS / LAYERS < cached.plan().estimate_share < 0.7  # the projections beside them


def test_law_7_the_predictors_weights_are_the_only_new_ones_and_follow_the_models_type(dit: Any) -> None:
    model, kwargs, folder = dit
    cached = rfc_fx.transform(model, rfc.DisCa(predictor=folder, full_steps=FULL), example_inputs=kwargs)
    old = {id(parameter) for parameter in model.parameters()}
    new = {name: parameter for name, parameter in cached.named_parameters() if id(parameter) not in old}
    assert all(name.startswith("_predictor.") for name in new)
    predictor = cached.method.estimator.load(model)  # type: ignore[attr-defined]
    assert len(new) == len(list(predictor.parameters()))
    held = {id(parameter) for parameter in cached.programs["ESTIMATE"].module.parameters()}
    assert {id(parameter) for parameter in new.values()} <= held
    half = FAMILIES["dit"](layers=LAYERS)[0].to(torch.bfloat16)
    other = rfc_fx.transform(half, cached.method)
    args = {**kwargs, "hidden_states": kwargs["hidden_states"].bfloat16()}
    twin = rfc.eager.cached(half, cached.method)
    assert largest_difference([x.float() for x in predictions(other, args)], [x.float() for x in predictions(twin, args)]) == 0


def test_another_predictor_needs_another_transformation(dit: Any, tmp_path: Path) -> None:
    model, kwargs, folder = dit
    cached = rfc_fx.transform(model, rfc.DisCa(predictor=folder, full_steps=FULL), example_inputs=kwargs)
    other = random_predictor(model, tmp_path, 16, BLOCKS, seed=1)
    with pytest.raises(rfc_fx.RFCError, match=r"needs other programs .* call rfc_fx\.transform again"):
        cached.method = rfc.DisCa(predictor=other, full_steps=FULL)


def test_a_model_that_was_changed_is_captured_anew_with_its_predictor(dit: Any) -> None:
    model, kwargs = FAMILIES["dit"](layers=LAYERS)
    cached = rfc_fx.transform(model, rfc.DisCa(predictor=dit[2], full_steps=FULL))
    predictions(cached, kwargs)
    cached.reset()
    model.to(torch.float64)
    args = {**kwargs, "hidden_states": kwargs["hidden_states"].double()}
    assert largest_difference(predictions(cached, args), predictions(rfc.eager.cached(model, cached.method), args)) == 0


def test_a_predictor_of_another_model_is_refused_in_one_line(dit: Any, tmp_path: Path) -> None:
    model, kwargs, folder = dit
    pixart, others = shared_model("pixart")
    with pytest.raises(rfc_fx.PredictorMismatchError, match=r"model_class: the predictor was trained for DiTTransformer2DModel"):
        rfc_fx.transform(pixart, rfc.DisCa(predictor=folder), example_inputs=others)
    with pytest.raises(ValueError, match=r"DisCa works on 'output', got 'block'; leave granularity out"):
        rfc_fx.transform(model, rfc.DisCa(predictor=folder), example_inputs=kwargs, config=rfc_fx.Config(granularity="block"))
    wide = random_predictor(model, tmp_path, channels=32)
    with pytest.raises(rfc_fx.PredictorMismatchError, match=r"takes a stream of shape \(2, 16, 16\), the predictor one of \(N, T, 32\)"):
        rfc_fx.transform(model, rfc.DisCa(predictor=wide), example_inputs=kwargs)


def test_blocks_of_two_streams_are_refused_by_name(tmp_path: Path) -> None:
    model, kwargs = shared_model("sd3")
    folder = random_predictor(model, tmp_path, model.inner_dim)
    with pytest.raises(
        rfc_fx.PredictorMismatchError, match=r"returns tuple, expected one tensor: a predictor stands in for blocks of one stream"
    ):
        rfc_fx.transform(model, rfc.DisCa(predictor=folder), example_inputs=kwargs)


def test_the_shipped_predictor_is_nearer_to_full_computation_than_reuse_of_the_output() -> None:
    model, scheduler = load_digits()
    labels, noise, full = torch.arange(4), digits_noise(list(range(900, 904))), (0, 2, 4, 7)
    wanted = sample(model, scheduler, labels, noise, steps=8)
    methods = (
        rfc.DisCa(predictor=DIGITS_PREDICTOR, full_steps=full),
        rfc.Method(estimator=rfc.Reuse(), schedule=rfc.Listed(full_steps=full), granularity="output"),
    )
    got = [sample(rfc.eager.cached(model, method), scheduler, labels, noise, steps=8) for method in methods]
    errors = [difference(one, wanted) for one in got]
    assert errors[0] < errors[1]
