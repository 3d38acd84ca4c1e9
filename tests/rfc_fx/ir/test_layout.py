"""State in pools, slices moved to where they save work, and a step that torch.compile does not look at again."""

import logging
from collections import Counter
from itertools import accumulate
from types import CodeType
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import DiTTransformer2DModel
from families import moved, shared_model
from torch import fx
from torch._inductor import compile_fx, metrics
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.utils import fresh_cache
from torch.profiler import ProfilerActivity, profile

import rfc
import rfc_fx
from rfc.state import SlotSpec
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.ops import aten, shape
from rfc_fx.passes.push_slices import push_slices

pytestmark = pytest.mark.usefixtures("captured_once")

SKETCHED = rfc.RFE(order=1, sketch=4)
TYPES = (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn)


def method(estimator: rfc.Estimator) -> rfc.Method:
    return rfc.Method(estimator=estimator, schedule=rfc.RCS(tau=float("inf"), warmup=3))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_slots_that_look_alike_lie_row_beside_row_and_never_overlap(dtype: torch.dtype) -> None:
    alike, other = SlotSpec((2, 3, 16), dtype), SlotSpec((2, 3, 1), torch.float32)
    slots = {
        "a.O": alike,
        "a.dO1": alike,
        "b.O": alike,
        "b.dO1": alike,
        "a.s": other,
        "b.s": other,
        "alone": alike,
        "single": SlotSpec((), dtype),
    }
    tensors, pools = Layout.pooled(slots, {"alone"}).allocate(torch.device("cpu"))
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {name: tuple(spec) for name, spec in slots.items()}
    assert {name: tuple(pool.shape) for name, pool in pools.items()} == {"pool_0": (2, 3, 4, 16)}
    for number, name in enumerate(("a.O", "a.dO1", "b.O", "b.dO1")):
        tensors[name].fill_(number + 1)
    assert pools["pool_0"].float()[1, 2, :, 0].tolist() == [1, 2, 3, 4]
    assert not tensors["alone"].float().any()
    storages = [t.untyped_storage()._cdata for t in (*tensors.values(), *pools.values())]
    assert len(set(storages)) == len(storages)  # what a compiler takes for one storage, it takes for overlapping


@pytest.mark.parametrize("family", ["dit", "flux", pytest.param("wan", marks=pytest.mark.slow)])
def test_an_estimated_step_is_handed_pools_where_it_is_one_pass_over_the_state(family: str) -> None:
    model, kwargs = shared_model(family)
    for estimator, pooled in ((rfc.Taylor(order=2), True), (SKETCHED, True), (rfc.RFE(order=1), False)):
        cached = rfc_fx.transform(model, method(estimator), example_inputs=moved(kwargs, 0))
        kinds = Counter(kind for kind, _ in cached.programs["ESTIMATE"].arguments)
        slots = [slot for slot in cached.compiled.guarded.slots if not slot.startswith("schedule.")]
        single = [slot for slot in slots if cached.compiled.guarded.slots[slot].shape[-1] == 1]  # a number of each token
        assert (kinds["pool"] > 0) is pooled
        assert kinds["state"] == (len(single) if pooled else len(slots))
        assert not pooled or kinds["pool"] <= len(slots) / 3
        assert {*cached.programs["ESTIMATE"].read()} == {*slots}
        assert cached.programs["FULL"].written().count(slots[0]) == 1


def test_a_sketched_estimate_normalizes_the_tokens_of_the_sketch_alone() -> None:
    model, kwargs = shared_model("dit")
    norms = {}
    for name, estimator in (("whole", rfc.RFE(order=1)), ("sketched", SKETCHED)):
        cached = rfc_fx.transform(model, method(estimator), example_inputs=moved(kwargs, 0))
        graph = cached.programs["ESTIMATE"].graph
        norms[name] = Counter(shape(node)[1] for node in graph.nodes if node.target is aten.layer_norm.default)
    assert norms["whole"] == {16: 5}  # four sites and the head
    assert norms["sketched"] == {4: 4, 16: 1}


def graph_of(function: Any, *shapes: tuple[int, ...]) -> fx.Graph:
    return torch.export.export(function, tuple(torch.randn(s) for s in shapes), strict=False).graph


class Chain(torch.nn.Module):
    def forward(self, x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x + gate * torch.nn.functional.layer_norm(y, (8,))
        turned = x.transpose(1, 2).relu()  # a transposition stands in the way
        return x[:, ::3].exp(), x[:, ::2] - y[:, ::2], turned[:, ::2], x


def test_slices_move_up_to_where_something_stands_in_the_way_and_change_no_value() -> None:
    inputs = [torch.randn(2, 12, 8), torch.randn(2, 1, 8), torch.randn(2, 12, 8)]
    exported = torch.export.export(Chain(), tuple(inputs), strict=False)
    module = exported.module()
    expected = module(*inputs)
    push_slices(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    for got, wanted in zip(module(*inputs), expected, strict=True):
        assert torch.equal(got, wanted)
    slices = [node for node in module.graph.nodes if node.target is aten.slice.Tensor]
    assert {str(node.args[0]) for node in slices} == {"x", "y", "transpose"}
    assert sorted(shape(node)[1] for node in module.graph.nodes if node.target is aten.layer_norm.default) == [4, 6, 12]


def test_a_slice_with_bounds_stays_where_it_is() -> None:
    class Bounded(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()[:, 1:9:2]

    graph = graph_of(Bounded(), (2, 12, 8))
    before = str(graph)
    push_slices(graph)
    assert str(graph) == before


def test_between_the_programs_torch_compile_decides_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, method(rfc.RFE(order=1)))
    step = torch.compile(cached, fullgraph=True, backend="eager")
    looked: list[str] = []
    original = torch._dynamo.trace_rules.check

    def check(item: Any, *more: Any, **named: Any) -> bool:
        if isinstance(item, CodeType):
            looked.append(item.co_qualname)
        return original(item, *more, **named)

    monkeypatch.setattr(torch._dynamo.trace_rules, "check", check)
    for i in range(8):
        if i == 5:
            looked.clear()
        step(**moved(kwargs, i, 8))
    assert cached.stats.phases[4:] == ["ESTIMATE"] * 4
    assert looked == []


def estimate_bytes(layers: int) -> tuple[int, int]:
    """(bytes that Inductor counts for the kernels of an estimated step, bytes of state)."""
    model, kwargs = shared_model("dit", layers)
    cached = rfc_fx.transform(
        model, rfc.Method(estimator=rfc.Taylor(order=1), schedule=rfc.Listed(full_steps=[0, 1])), config=rfc_fx.Config(hoist=True)
    )
    run = cached.trace(**kwargs)
    program = cached.programs["ESTIMATE"].run
    given: list[Any] = []
    hook = program.register_forward_pre_hook(lambda _, arguments: given.extend(arguments))
    for i in range(3):
        cached(**moved(kwargs, i))
    hook.remove()
    torch._dynamo.reset()
    metrics.reset()
    uncompiled = mock.patch.object(AsyncCompile, "cpp_pybinding", return_value=lambda *_: None)  # kernels are counted, not run
    with torch.no_grad(), fresh_cache(), uncompiled:  # what comes from a cache is not counted
        torch.compile(program, fullgraph=True)(*given)
    return metrics.num_bytes_accessed, run.state_bytes


@pytest.mark.compile
def test_an_estimated_step_reads_each_state_tensor_once_and_writes_nothing_for_a_site() -> None:
    """Each further block costs its state and its modulation (six rows of 16 channels per sample): no copy, no pass over the stream."""
    before = compile_fx.inductor_metrics_log.level
    compile_fx.inductor_metrics_log.setLevel(logging.INFO)  # Inductor counts where it would log the count
    try:
        few, many = estimate_bytes(1), estimate_bytes(2)
    finally:
        compile_fx.inductor_metrics_log.setLevel(before)
    state = many[1] - few[1]
    modulation = 2 * (6 * 16 * 4)
    assert state <= many[0] - few[0] <= state + 2 * modulation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_state_dtype_makes_the_state_smaller_as_the_plan_says_and_another_threshold_keeps_it(dtype: torch.dtype) -> None:
    model, kwargs = shared_model("dit")
    plain, small = (
        rfc_fx.transform(model, rfc.RFC(tau=0.3), example_inputs=kwargs, config=rfc_fx.Config(state_dtype=kept)) for kept in (None, dtype)
    )
    sizes = [{row.name: row.bytes for row in cached.plan().slots} for cached in (plain, small)]
    for name, size in sizes[0].items():
        smaller = name.endswith(".dO1") and not name.startswith("schedule.")
        assert sizes[1][name] == (size * dtype.itemsize // 4 if smaller else size)
    small.method = rfc.RFC(tau=float("inf"))
    with torch.no_grad():
        for i in range(5):
            small(**moved(kwargs, i))
    assert small.stats.phases == ["FULL"] * 3 + ["ESTIMATE"] * 2
    with pytest.raises(TypeError, match="state_dtype must be None or one of torch"):
        rfc_fx.transform(model, config=rfc_fx.Config(state_dtype=torch.float64))


def peak_bytes(call: Any) -> int:
    """Most memory that a call held at one time, beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    moves = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(accumulate(event.nbytes() for event in sorted(moves, key=lambda event: event.start_ns())))
    return max(held)


@pytest.mark.compile
@pytest.mark.slow
def test_a_full_step_holds_one_output_of_a_site_more_than_the_plain_model() -> None:
    """The residual stream that PREFIX hands on; state is written in place. Beside it, modulation: no token has a part in that."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 4, "out_channels": 8, "sample_size": 32}
    model = DiTTransformer2DModel(**size, num_embeds_ada_norm=10).eval()
    call = {"hidden_states": torch.randn(2, 4, 32, 32), "timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([1, 10])}
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0), example_inputs=call)
    peaks = []
    with torch.no_grad(), cached.generation():
        for step in (torch.compile(cached, fullgraph=True), torch.compile(model, fullgraph=True)):
            for i in range(3):
                step(**moved(call, i))
            peaks.append(peak_bytes(lambda step=step: step(**moved(call, 3))))
    stream = 2 * 256 * 16 * 4
    modulation = 2 * (2 * 6 + 2) * 16 * 4
    assert cached.stats.phases == ["FULL"] * 4
    assert peaks[0] - peaks[1] <= stream + 2 * modulation
