"""When a decision is taken: at once, with ESTIMATE under way, or a step late; and how calls are recognised before it."""

from typing import Any

import pytest
import torch
from families import FAMILIES, moved, sample, shared_model
from tolerances import SAME_GRAPH
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from rfc_fx.runtime import calls
from rfc_fx.runtime.cached_model import CachedModel
from rfc_fx.runtime.driver import Driver
from rfc_fx.runtime.readback import Readback

STEPS = 10

pytestmark = pytest.mark.usefixtures("captured_once")

MODEL, KWARGS = shared_model("dit")


def some_tau(share: float = 0.5, **rule: Any) -> rfc.Method:
    """RFC with a threshold that makes some steps of the generation full and some not."""
    probe = rfc_fx.transform(MODEL, rfc.Method(estimator=rfc.RFE(order=1), schedule=rfc.RCS(tau=float("inf"), **rule)))
    generation(probe)
    total = sum(eps for eps in probe.stats.eps if eps is not None)
    return rfc.Method(estimator=rfc.RFE(order=1), schedule=rfc.RCS(tau=share * total / 2, **rule))


@torch.no_grad()
def generation(model: Any, steps: int = STEPS, kwargs: dict[str, Any] = KWARGS) -> Tensor:
    return torch.stack([sample(model(**moved(kwargs, i, steps))) for i in range(steps)])


class Runs:
    """The runs of each program, and the readbacks that are waited for, in order."""

    def __init__(self, cached: CachedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        for phase, program in cached.programs.items():
            program.run.register_forward_pre_hook(lambda *_, phase=phase: self.events.append(phase))
        wait = Readback.wait

        def noted(readback: Readback) -> list[float]:
            self.events.append("wait")
            return wait(readback)

        monkeypatch.setattr(Readback, "wait", noted)


def test_speculation_changes_no_bit_and_runs_estimate_before_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    method = some_tau()
    plain, cached = (
        rfc_fx.transform(MODEL, method, example_inputs=KWARGS, config=rfc_fx.Config(speculate=wanted)) for wanted in (None, True)
    )
    runs = Runs(cached, monkeypatch)
    expected = generation(plain)
    runs.events.clear()
    assert torch.equal(generation(cached), expected)
    phases = cached.stats.phases
    assert phases == plain.stats.phases
    warm = method.schedule.warmup
    assert {*phases[warm:]} == {"FULL", "ESTIMATE"}
    sequence = [["PREFIX", "wait", "FULL"]] * warm
    sequence += [["PREFIX", "ESTIMATE", "wait"] + (["FULL"] if phase == "FULL" else []) for phase in phases[warm:]]
    assert runs.events == [event for events in sequence for event in events]


def test_speculation_notices_a_new_generation() -> None:
    cached = rfc_fx.transform(MODEL, some_tau(), example_inputs=KWARGS, config=rfc_fx.Config(speculate=True))
    first = generation(cached)
    assert torch.equal(generation(cached), first)  # no reset: the timestep rises
    assert cached.stats.step == STEPS


def test_lagged_decisions_are_those_of_the_errors_before(monkeypatch: pytest.MonkeyPatch) -> None:
    method = some_tau(lagged=True)
    cached = rfc_fx.transform(MODEL, method, example_inputs=KWARGS)
    runs = Runs(cached, monkeypatch)
    generation(cached)
    eps, phases, total = cached.stats.eps, cached.stats.phases, 0.0
    expected = []
    for i, phase in enumerate(phases):
        expected.append("FULL" if i < method.schedule.warmup or not total <= method.schedule.threshold else "ESTIMATE")
        total = 0.0 if phase == "FULL" else total + (eps[i] or 0.0)
    assert phases == expected
    assert {*phases[3:]} == {"FULL", "ESTIMATE"}
    assert runs.events[:2] == ["PREFIX", "FULL"]  # the readback is waited for in the step after
    assert runs.events[2:] == [event for phase in phases[1:] for event in ("wait", "PREFIX", phase)]


@pytest.mark.parametrize("family", ["dit", "flux"])
def test_lagged_decisions_are_the_same_in_twin_host_and_cond(family: str) -> None:
    model, kwargs = shared_model(family)
    method = rfc.Method(estimator=rfc.RFE(order=1), schedule=rfc.RCS(tau=0.12, lagged=True))
    host, cond = (rfc_fx.transform(model, method, config=rfc_fx.Config(dispatch=dispatch)) for dispatch in ("host", "cond"))  # type: ignore[arg-type]
    outputs = [generation(one, kwargs=kwargs) for one in (host, cond)]
    twin = rfc.eager.cached(model, method)
    expected = generation(twin, kwargs=kwargs)
    for one, output in zip((host, cond), outputs, strict=True):
        assert one.stats.phases == twin.stats.phases
        assert float((output - expected).norm() / expected.norm()) <= SAME_GRAPH
    assert twin.stats.phases.count("ESTIMATE") >= 2
    assert host.stats.eps[:-1] == pytest.approx(twin.stats.eps[:-1])  # the last one is on its way
    assert host.stats.totals == pytest.approx(twin.stats.totals)


def test_what_a_lagged_decision_misses_is_the_first_step_after_a_full_one() -> None:
    patterns = []
    for lagged in (False, True):
        method = rfc.Method(estimator=rfc.RFE(order=1), schedule=rfc.RCS(tau=1e-9, warmup=3, lagged=lagged))
        cached = rfc_fx.transform(MODEL, method, example_inputs=KWARGS)
        generation(cached)
        patterns.append("".join(phase[0] for phase in cached.stats.phases))
    assert patterns == ["FFFFFFFFFF", "FFFEFEFEFE"]


@pytest.fixture
def _unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timestep lies on a device, as far as the model can tell."""
    monkeypatch.setattr(Driver, "_seen_timestep", lambda *_: None)


@pytest.mark.usefixtures("_unseen")
def test_a_lagged_model_that_cannot_see_the_timestep_says_when_it_missed_a_new_generation() -> None:
    cached = rfc_fx.transform(MODEL, some_tau(lagged=True), example_inputs=KWARGS)
    with cached.generation():
        first = generation(cached)
        cached.reset()
        assert torch.equal(generation(cached), first)
        with pytest.raises(rfc_fx.RFCError, match=r"call reset\(\) before every generation"):
            generation(cached)
        assert torch.equal(generation(cached), first)


@pytest.mark.usefixtures("_unseen")
def test_a_lagged_model_that_cannot_see_the_timestep_checks_the_prepared_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfc_fx.runtime.calls.on_host", lambda tensor: False)
    cached = rfc_fx.transform(MODEL, some_tau(lagged=True), example_inputs=KWARGS, config=rfc_fx.Config(hoist=True))
    coming = [float(moved(KWARGS, i, STEPS)["timestep"][0]) for i in range(STEPS)]
    cached.prepare(coming)
    generation(cached)
    cached.reset()
    cached.prepare([coming[0], *(t - 1 for t in coming[1:])])
    with pytest.raises(rfc_fx.RFCError, match=r"prepare\(\) the timesteps as they come"):
        generation(cached)


def test_a_method_cannot_become_lagged_between_steps() -> None:
    cached = rfc_fx.transform(MODEL, rfc.RFC(tau=0.1), example_inputs=KWARGS)
    with pytest.raises(rfc_fx.RFCError, match="transform again"):
        cached.method = rfc.Method(estimator=rfc.RFC(tau=0.1).estimator, schedule=rfc.RCS(tau=0.1, lagged=True))


# ---- calls that are recognised ---------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A transformer with an argument that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, _ = FAMILIES["dit"](layers=1)

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        return (scale * self.inner(hidden_states, timestep, class_labels, return_dict=False)[0],)


def taken_apart(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every call that was not recognised."""
    seen: list[int] = []
    of = calls.new_call

    def noted(*given: Any) -> Any:
        seen.append(1)
        return of(*given)

    monkeypatch.setattr("rfc_fx.runtime.program_cache.new_call", noted)
    return seen


@torch.no_grad()
def test_a_call_is_taken_apart_once_for_each_way_of_writing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaled()
    cached = rfc_fx.transform(model, rfc.FullCompute())
    seen = taken_apart(monkeypatch)
    h, t, c = (KWARGS[name] for name in ("hidden_states", "timestep", "class_labels"))
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((h, t, c), {}),
        ((h, t), {"class_labels": c}),
        ((), {"class_labels": c, "timestep": t, "hidden_states": h}),
        ((h, t, c), {"scale": 2.0}),
        ((h, t, c, 3.0), {}),
        ((h[:1], t[:1], c[:1]), {}),
        ((h, t, c.flip(0)), {}),  # other values: the same call
        ((h.clone(), t, c), {}),
    ]
    for _ in range(2):
        for args, kwargs in ways:
            assert torch.equal(cached(*args, **kwargs)[0], model(*args, **kwargs)[0])
    assert len(seen) == 7  # a number that has changed is an input from then on, and such calls are taken apart each time


@torch.no_grad()
def test_what_lies_inside_other_arguments_is_looked_at_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kwargs = shared_model("pixart")  # takes a mapping
    cached = rfc_fx.transform(model, rfc.FullCompute())
    seen = taken_apart(monkeypatch)
    for _ in range(3):
        cached(**kwargs)
    assert len(seen) == 3


@torch.no_grad()
def test_a_tensor_given_twice_does_not_hide_which_one_is_the_timestep() -> None:
    class Shifted(Scaled):
        def forward(self, hidden_states: Tensor, shift: Tensor, timestep: Tensor, labels: Tensor) -> tuple[Tensor]:  # type: ignore[override]
            return (self.inner(hidden_states, timestep, labels, return_dict=False)[0] + shift.sum(),)

    model = Shifted()
    cached = rfc_fx.transform(model, rfc.FullCompute())
    h, t, c = (KWARGS[name] for name in ("hidden_states", "timestep", "class_labels"))
    cached(h, t, t, c)
    call = cached.cache.recognise((h, t + 1, t, c), {})
    assert call.timestep is t


def test_a_recognised_call_is_checked_for_gradients() -> None:
    cached = rfc_fx.transform(MODEL, rfc.FullCompute(), example_inputs=KWARGS)
    cached(**KWARGS)
    with pytest.raises(rfc_fx.SignatureError, match="requires grad"):
        cached(**{**KWARGS, "hidden_states": KWARGS["hidden_states"].clone().requires_grad_()})


@pytest.mark.parametrize("count", [1, calls.FEW, calls.FEW + 1])
def test_the_smallest_and_largest_timestep_of_a_batch(count: int) -> None:
    timestep = torch.linspace(3, 7, count) if count > 1 else torch.tensor([5.0])
    assert calls.timestep_ends(timestep) == (float(timestep.min()), float(timestep.max()))
