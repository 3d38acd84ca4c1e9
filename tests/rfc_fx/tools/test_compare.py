"""Comparisons: every program runs in the warm-up, whatever decides, and each method has the granularity that it wants."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from families import FAMILIES, moved, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rfc
import rfc_fx
from rfc.method import programs_of
from rfc_fx.errors import RFCError
from rfc_fx.tools.variants import Settings, Variant, configs, steps_to_warm_up, variants

pytestmark = pytest.mark.usefixtures("captured_once")

STEPS = 50

METHODS: dict[str, rfc.Method] = {
    "full": rfc.FullCompute(),
    "fora": rfc.FORA(),
    "taylorseer-lite": rfc.TaylorSeerLite(),
    "delta-dit": rfc.DeltaDiT(),
    "rfc": rfc.RFC(),
    "cautious": rfc.Method(estimator=rfc.Newton(), schedule=rfc.RCS(tau=0.0, max_skip=2, lagged=True)),
    "listed": rfc.Method(estimator=rfc.Reuse(), schedule=rfc.Listed(full_steps=[*range(7), 9])),
    "teacache": rfc.TeaCache(threshold=0.0, num_steps=4),
    "first-block": rfc.FirstBlockCache(threshold=0.0),
    "dicache": rfc.DiCache(threshold=0.0, warmup=11, num_steps=STEPS),
    "magcache": rfc.MagCache(ratios=[1.0] * STEPS),
    "speca": rfc.SpeCa(min_drafts=4, max_drafts=12, enhanced=20),
}

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@dataclass
class Drifting:
    """A source that calls the model as a sampler does, and draws nothing."""

    name: str = "drifting"
    seeds: list[int] = field(default_factory=lambda: [0])
    groups: list[str] = field(default_factory=lambda: ["one"])

    def __post_init__(self) -> None:
        self.model, self.kwargs = FAMILIES["dit"](layers=3)

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Any) -> Tensor:
        with torch.no_grad():
            return torch.stack([sample(model(**moved(self.kwargs, step, steps))) for step in range(steps)])


# ---- warming up ------------------------------------------------------------------------------------------------------


@every_method
def test_an_exercised_schedule_is_a_change_of_settings_that_needs_no_other_programs(method: rfc.Method) -> None:
    assert programs_of(method.exercised()) == programs_of(method)


@every_method
@given(most=st.integers(1, 60), eps=st.floats(0, 100))
def test_a_short_generation_comes_to_every_phase_the_schedule_can_come_to(method: rfc.Method, most: int, eps: float) -> None:
    schedule, count, generation = method.exercised().schedule, steps_to_warm_up(method, most), rfc.Record()
    for _ in range(count):
        if generation.decide(schedule, schedule.numbers(), eps, None) == "VERIFY":
            generation.learn(schedule, eps)
    assert count <= most
    assert count <= schedule.warmup + 2
    reached = {*generation.phases}
    if most >= schedule.warmup + 2:
        assert reached == {*schedule.branches}


@pytest.mark.parametrize("name", ["rfc", "teacache", "first-block", "dicache", "speca", "magcache"])
def test_every_program_runs_in_the_warm_up_and_the_method_is_its_own_again(name: str) -> None:
    source, method = Drifting(), METHODS[name]
    cached = rfc_fx.transform(source.model, method, example_inputs=source.kwargs, config=rfc_fx.Config(hoist=True))
    ran: list[str] = []
    for phase, program in cached.programs.items():
        program.run.register_forward_pre_hook(lambda *_, phase=phase: ran.append(phase))
    variant = Variant(method=name, side="graph", call=cached, cache=cached, warmup_steps=steps_to_warm_up(method, STEPS))
    variant.warm_up(source, torch.device("cpu"))  # type: ignore[arg-type]
    assert {*ran} == {*cached.programs}
    assert cached.method == method


# ---- granularity -----------------------------------------------------------------------------------------------------


def test_a_wanted_granularity_is_for_the_methods_that_leave_it_open() -> None:
    methods = {"rfc": rfc.RFC(), "teacache": rfc.TeaCache(), "delta-dit": rfc.DeltaDiT(first=2)}
    block = rfc_fx.Config(granularity="block", hoist=True)
    assert configs(methods, rfc_fx.Config()) == dict.fromkeys(methods, rfc_fx.Config())
    assert configs(methods, block) == {"rfc": block, "teacache": rfc_fx.Config(hoist=True), "delta-dit": rfc_fx.Config(hoist=True)}
    stack = rfc_fx.Config(granularity="stack")
    assert configs({"teacache": rfc.TeaCache()}, stack) == {"teacache": stack}


def test_a_granularity_that_no_method_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^granularity: TeaCache works on 'stack', got 'block'; leave granularity out$"):
        configs({"teacache": rfc.TeaCache()}, rfc_fx.Config(granularity="block"))


@pytest.mark.parametrize("size", [None, "block", "stack", "output", "blocks[1:]"])
def test_the_twin_has_the_granularity_of_the_graph(size: str | None) -> None:
    methods = {"rfc": rfc.RFC(tau=0.3), "first-block": rfc.FirstBlockCache(threshold=0.4)}
    made = variants(Drifting(), methods, Settings(compile=False, config=rfc_fx.Config(granularity=size)))  # type: ignore[arg-type]
    for variant in made:
        variant.run(Drifting(), 0, 6, lambda: None, torch.device("cpu"))  # type: ignore[arg-type]
    for name, wanted in (("rfc", size or "module"), ("first-block", "blocks[1:]")):
        twin, graph = (variant for variant in made if variant.method == name)
        assert twin.granularity == graph.granularity == wanted
        assert [record.phases for record in twin.records[0].values()] == [record.phases for record in graph.records[0].values()]
        assert torch.allclose(twin.images[0], graph.images[0], atol=1e-4)


def test_a_model_without_a_list_of_blocks_has_no_coarser_twin_and_says_so() -> None:
    class FeedForward(nn.Linear):
        """What the twin takes for a feed-forward, by its name."""

    class Alone(nn.Module):
        """One feed-forward, in no list of blocks."""

        def __init__(self) -> None:
            super().__init__()
            self.ff = FeedForward(4, 4)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return x + self.ff(x)

    source = Drifting()
    source.model = Alone()
    (_, twin, _) = variants(source, {"rfc": rfc.RFC()}, Settings(compile=False, config=rfc_fx.Config(granularity="block")))  # type: ignore[arg-type]
    assert twin.granularity == "module"
    with pytest.raises(RFCError, match=r"^teacache: the eager twin cannot be made: Alone: no list of blocks with attention"):
        variants(source, {"teacache": rfc.TeaCache()}, Settings(compile=False))  # type: ignore[arg-type]


def test_a_threshold_is_what_the_error_is_held_against() -> None:
    thresholds = [METHODS[name].schedule.threshold for name in ("rfc", "teacache", "dicache", "speca", "magcache", "fora")]
    assert thresholds == [0.1, 0.0, 0.0, 0.1, 0.06, None]
