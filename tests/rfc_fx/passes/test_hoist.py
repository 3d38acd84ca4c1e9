"""Hoisting: nothing of the result changes, work moves out of the steps, and what was computed ahead is never used for other inputs."""

from functools import partial
from typing import Any

import diffusers
import drawing
import pipelines
import pytest
import torch
import torch._dynamo.testing
from drawing import difference, largest_difference
from families import FAMILIES, moved, sample, shared_model
from pipelines import PIPELINES
from tolerances import INDUCTOR, PREPARED, SAME_GRAPH

import rfc
import rfc_fx
from rfc_fx.ir.ops import is_heavy, value
from rfc_fx.ir.phase import HOISTED_PHASES
from rfc_fx.ir.plan import Level
from rfc_fx.passes.hoist import hoist, levels
from rfc_fx.passes.prefix import prefix_nodes
from rfc_fx.runtime import calls, driver

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 8
predictions = partial(drawing.predictions, steps=STEPS)
METHODS = {"dit": rfc.TaylorSeer(interval=3, order=1), "sd3": rfc.RFC(tau=0.3), "wan": rfc.RFC(tau=0.3)}


def timesteps(kwargs: dict[str, Any], steps: int = STEPS) -> torch.Tensor:
    return torch.stack([moved(kwargs, i, steps)["timestep"].flatten()[0] for i in range(steps)])


@pytest.mark.parametrize("family", ["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd3", "wan"))])
def test_hoisted_programs_give_the_same_bits_and_prepared_ones_the_same_numbers(family: str) -> None:
    model, kwargs = shared_model(family)
    plain = rfc_fx.transform(model, METHODS[family])
    hoisted = rfc_fx.transform(model, METHODS[family], config=rfc_fx.Config(hoist=True))
    again = {**kwargs, "hidden_states": kwargs["hidden_states"] * 1.1}
    expected = [*predictions(plain, kwargs), *predictions(plain, again)]
    assert all(map(torch.equal, [*predictions(hoisted, kwargs), *predictions(hoisted, again)], expected))
    hoisted.reset()
    hoisted.prepare(timesteps(kwargs))
    assert largest_difference([*predictions(hoisted, kwargs), *predictions(hoisted, again)], expected) < PREPARED
    assert hoisted.stats.phases == plain.stats.phases


@pytest.mark.parametrize("family", ["pixart", "flux"])
def test_text_projections_and_keys_and_values_of_the_text_leave_every_step(family: str) -> None:
    model, kwargs = shared_model(family)
    cached = rfc_fx.transform(model, example_inputs=kwargs, config=rfc_fx.Config(hoist=True))
    level = levels(cached.guarded, cached.compiled.timestep)
    names = {node.name for node in hoist(cached.guarded, cached.compiled.timestep, prefix_nodes(cached.guarded)).invariant}
    heavy = [node.name for node, kind in level.items() if kind is Level.INVARIANT and is_heavy(node)]
    assert heavy
    assert set(heavy) <= names
    for phase in ("TIMESTEP", "PREFIX", "FULL", "ESTIMATE"):
        assert not {node.name for node in cached.programs[phase].graph.nodes} & set(heavy)
    plan = cached.plan()
    assert plan.invariant_flops > 0
    assert plan.invariant_bytes > 0


def test_work_in_float64_leaves_every_step() -> None:
    model, kwargs = shared_model("flux")  # whose rotary table is computed in it
    cached = rfc_fx.transform(model, example_inputs=kwargs, config=rfc_fx.Config(hoist=True))
    types = {phase: {getattr(value(node), "dtype", None) for node in one.graph.nodes} for phase, one in cached.compiled.programs.items()}
    assert {phase for phase, found in types.items() if torch.float64 in found} == {"INVARIANT"}


def test_the_modulation_of_every_block_is_one_program() -> None:
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, example_inputs=kwargs, config=rfc_fx.Config(hoist=True))
    plain = rfc_fx.transform(model, example_inputs=kwargs)
    assert list(cached.programs) == ["TIMESTEP", "PREFIX", "FULL", "ESTIMATE"]
    left = [node.name for node in cached.programs["ESTIMATE"].graph.nodes if is_heavy(node)]
    assert len(left) == 1  # the output head
    assert cached.plan().full_flops == plain.plan().full_flops
    assert cached.plan().timestep_flops > 0


def counted(monkeypatch: pytest.MonkeyPatch, cached: rfc_fx.CachedModel) -> list[str]:
    """Names of the programs that run ahead, as they are run."""
    ran: list[str] = []
    original = driver.Driver._call

    def call(self: Any, context: Any, phase: str, *inputs: Any) -> Any:
        if phase in HOISTED_PHASES:
            ran.append(phase)
        return original(self, context, phase, *inputs)

    monkeypatch.setattr(driver.Driver, "_call", call)
    return ran


def test_invariants_are_computed_once_per_generation_and_prepared_timesteps_never(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kwargs = shared_model("pixart")
    cached = rfc_fx.transform(model, rfc.TaylorSeer(interval=3, order=1), config=rfc_fx.Config(hoist=True))
    ran = counted(monkeypatch, cached)
    predictions(cached, kwargs)
    assert ran.count("INVARIANT") == 1
    assert ran.count("TIMESTEP") == STEPS
    ran.clear()
    cached.prepare(timesteps(kwargs))
    predictions(cached, kwargs)
    assert ran == ["INVARIANT"]


@pytest.mark.parametrize("change", ["object", "in place"])
def test_a_changed_conditioning_is_never_missed(change: str) -> None:
    model, kwargs = shared_model("pixart")
    results = {}
    for hoisted in (False, True):
        cached = rfc_fx.transform(model, rfc.TaylorSeer(interval=3, order=1), config=rfc_fx.Config(hoist=hoisted))
        if hoisted:
            cached.prepare(timesteps(kwargs))
        text = kwargs["encoder_hidden_states"].clone()
        results[hoisted] = []
        with torch.no_grad(), cached.cache_context("one"):
            for i in range(STEPS):
                if i == 3 and change == "in place":
                    text.mul_(1.5)
                elif i == 3:
                    text = text * 1.5
                results[hoisted].append(sample(cached(**{**moved(kwargs, i, STEPS), "encoder_hidden_states": text})))
    assert largest_difference(results[True], results[False]) < PREPARED


def test_weights_changed_between_generations_are_seen() -> None:
    model, kwargs = FAMILIES["sd3"]()
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(hoist=True))
    cached.prepare(timesteps(kwargs))
    predictions(cached, kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.05)  # as merging an adapter does, unseen by version counters
    expected = predictions(rfc_fx.transform(model, rfc.RFC(tau=0.3)), kwargs)
    assert largest_difference(predictions(cached, kwargs), expected) < PREPARED


@pytest.mark.parametrize("host_knows", [True, False])
def test_steps_in_another_order_or_at_other_timesteps_compute_their_own(host_knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`host_knows` False: as on a GPU, where the timestep comes to the host only with the decision."""
    monkeypatch.setattr(calls, "on_host", lambda tensor: host_knows)
    model, kwargs = shared_model("dit")
    expected = predictions(rfc_fx.transform(model, rfc.RFC(tau=0.3)), kwargs)
    for order in (timesteps(kwargs), timesteps(kwargs)[::2], timesteps(kwargs) + 1, timesteps(kwargs)[:3]):
        cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(hoist=True))
        cached.prepare(order)
        for _ in range(2):
            assert largest_difference(predictions(cached, kwargs), expected) < PREPARED
            assert len(cached.stats.phases) == STEPS


@pytest.mark.parametrize("is_said", [False, True])
def test_samples_at_different_timesteps_do_not_use_the_table(is_said: bool) -> None:
    """Neither of prepared timesteps nor of those that the generation was opened with."""
    model, kwargs = shared_model("dit")
    times = kwargs["timestep"] - torch.tensor([0, 100])
    cached = rfc_fx.transform(model, rfc.TaylorSeer(interval=3, order=1), config=rfc_fx.Config(hoist=True))
    cached.prepare(times)
    call = {**kwargs, "timestep": times}
    with torch.no_grad(), cached.generation([float(times.max())] if is_said else None):
        assert torch.equal(sample(cached(**call)), sample(model(**call)))


def test_work_that_cannot_be_batched_is_done_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Any) -> Any:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(torch, "vmap", refuse)
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(hoist=True))
    cached.prepare(timesteps(kwargs))
    expected = predictions(rfc_fx.transform(model, rfc.RFC(tau=0.3)), kwargs)
    assert largest_difference(predictions(cached, kwargs), expected) < SAME_GRAPH


@pytest.mark.usefixtures("no_recompiles")
def test_every_program_is_one_frame_whatever_is_prepared() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, kwargs = shared_model("pixart")
    cached, plain = (rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(hoist=True)) for _ in range(2))
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(cached, fullgraph=True, backend=counter)
    for steps in (None, timesteps(kwargs), timesteps(kwargs, 5), None):
        compiled.prepare(steps)
        cached.reset()
        assert largest_difference(predictions(compiled, kwargs), predictions(plain, kwargs)) < PREPARED
    assert counter.frame_count == len(cached.programs) == 5
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_by_inductor_with_repeated_blocks_shared() -> None:
    torch._dynamo.reset()
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(hoist=True, regional=True))
    cached.prepare(timesteps(kwargs))
    compiled = torch.compile(cached, fullgraph=True)
    assert largest_difference(predictions(compiled, kwargs), predictions(rfc_fx.transform(model, rfc.RFC(tau=0.3)), kwargs)) < INDUCTOR


def test_prepare_refuses_timesteps_of_another_rank() -> None:
    model, kwargs = shared_model("dit")
    with pytest.raises(ValueError, match=r"prepare: timesteps must have shape \(S,\) with S at least 1, got \(0,\)"):
        rfc_fx.transform(model, example_inputs=kwargs, config=rfc_fx.Config(hoist=True)).prepare([])


FOLLOWED = {
    "dit": "as it is",
    "flux": "divided by 1000",
    "z_image": "(1000 - t) / 1000",
    "lumina2": "1 - t / 1000",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "dit" else pytest.mark.slow) for name in FOLLOWED])
def test_a_model_that_follows_its_pipeline_computes_modulation_for_all_steps_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pipeline makes of the scheduler's timesteps; the second generation is the first one, bit for bit."""
    pipe, arguments = PIPELINES[name]()
    model, method = pipe.transformer, rfc.RFC(tau=0.3)
    pipe.transformer = rfc_fx.transform(model, method)
    expected = pipelines.run(pipe, arguments(0, 1))
    pipe.transformer = cached = rfc_fx.transform(model, method, config=rfc_fx.Config(hoist=True))
    cached.follow(pipe)
    ran = counted(monkeypatch, cached)
    images = [pipelines.run(pipe, arguments(0, 1))]
    ran.clear()
    images.append(pipelines.run(pipe, arguments(0, 1)))
    assert difference(images[0], expected) < PREPARED
    assert torch.equal(*images)
    assert not ran.count("TIMESTEP")  # computed for all steps at once from the first call on
    other = pipelines.run(pipe, arguments(0, 1), steps=6)
    assert not ran.count("TIMESTEP")
    cached.prepare(None)
    assert float((pipelines.run(pipe, arguments(0, 1), steps=6) - other).norm() / other.norm()) < PREPARED


def test_what_has_no_scheduler_cannot_be_followed_and_a_strange_timestep_is_computed_step_by_step() -> None:
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), config=rfc_fx.Config(hoist=True))
    for wrong, name in ((model, "DiTTransformer2DModel"), ("pipe", "str"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"follow: expected a pipeline with a scheduler, or a scheduler, got {name}"):
            cached.follow(wrong)
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(7)
    cached.follow(scheduler)
    assert largest_difference(predictions(cached, kwargs), predictions(rfc_fx.transform(model, rfc.RFC(tau=0.3)), kwargs)) < PREPARED


class Turned(torch.nn.Module):
    """What is made of the text does not lie in memory as its axes go."""

    def __init__(self) -> None:
        super().__init__()
        self.read = torch.nn.Linear(8, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x, mix = hidden_states * timestep.reshape(-1, 1, 1), self.read(text).transpose(1, 2).relu()
        for block in self.blocks:
            x = x + block(torch.nn.functional.layer_norm(x, (8,)) @ mix)
        return x


def test_a_hoisted_result_that_is_not_contiguous_is_handed_on_contiguous() -> None:
    torch.manual_seed(0)
    model, text = Turned().eval(), torch.randn(2, 8, 8)
    plain, cached = (
        rfc_fx.transform(model, rfc.RFC(tau=float("inf"), warmup=2), config=rfc_fx.Config(hoist=hoist)) for hoist in (False, True)
    )
    x = torch.randn(2, 4, 8)
    with torch.no_grad():
        for step in range(1, 5):
            timestep = torch.tensor([1 - step / 8] * 2)
            assert torch.equal(cached(x * step, timestep, text), plain(x * step, timestep, text))
    assert cached.plan().invariant_bytes == 2 * 8 * 8 * 4
