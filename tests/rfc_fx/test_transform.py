"""What a user of a transformed model meets: attributes, contexts, resets, reports, errors, copies, threads."""

import copy
import pickle
import threading
from functools import partial
from typing import Any

import drawing
import pytest
import torch
from diffusers import DDIMScheduler
from families import FAMILIES, moved, sample
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from rfc_fx.runtime import program_cache

pytestmark = pytest.mark.usefixtures("captured_once")

generation = partial(drawing.generation, steps=8)


def dit(method: Any = None, **config: Any) -> tuple[nn.Module, rfc_fx.CachedModel, dict[str, Any]]:
    model, kwargs = FAMILIES["dit"]()
    return model, rfc_fx.transform(model, method, config=rfc_fx.Config(**config)), kwargs


def test_it_stands_where_the_model_stood() -> None:
    model, cached, kwargs = dit()
    assert cached.config is model.config
    assert cached.dtype == model.dtype
    assert cached.device == model.device
    assert cached.transformer_blocks is model.transformer_blocks
    with torch.no_grad():
        assert type(cached(**kwargs)) is type(model(**kwargs))
        as_tuple = cached(**kwargs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = cached.no_such_thing


def test_hooks_on_the_cached_model_and_on_all_modules_are_called_around_a_step() -> None:
    _, cached, kwargs = dit(method=rfc.FullCompute())
    called: list[str] = []

    def everywhere(module: nn.Module, *_: Any) -> None:
        called.extend(["everywhere"] * (module is cached))

    hooks = [
        cached.register_forward_pre_hook(lambda *_: called.append("before")),
        cached.register_forward_hook(lambda *_: called.append("after")),
        nn.modules.module.register_module_forward_hook(everywhere),
    ]
    for hook, expected in zip(
        [*hooks, None], (["before", "everywhere", "after"], ["everywhere", "after"], ["everywhere"], []), strict=True
    ):
        with torch.no_grad():
            cached(**kwargs)
        assert called == expected
        called.clear()
        if hook is not None:
            hook.remove()


def test_positional_and_named_arguments_are_the_same_call() -> None:
    _, cached, kwargs = dit(method=rfc.FullCompute())
    with torch.no_grad():
        named = cached(**kwargs).sample
        placed = cached(kwargs["hidden_states"], kwargs["timestep"], kwargs["class_labels"]).sample
    assert torch.equal(named, placed)
    assert len(cached.cache) == 1


def test_example_inputs_capture_at_once_and_plan_speaks_before_the_first_run() -> None:
    model, kwargs = FAMILIES["dit"]()
    cached = rfc_fx.transform(model, example_inputs=kwargs)
    plan = cached.plan()
    assert len(plan.sites) == 4
    assert plan.state_bytes > 0
    assert 0 < plan.estimate_share < 1
    assert cached.stats.phases == []
    positional = rfc_fx.transform(model, example_inputs=tuple(kwargs.values()))
    assert positional.plan() == plan


def test_plan_without_a_capture_says_how_to_get_one() -> None:
    _, cached, _ = dit()
    with pytest.raises(rfc_fx.RFCError, match=r"nothing captured yet; pass example_inputs to rfc_fx.transform or call the model once"):
        cached.plan()


@pytest.mark.filterwarnings("ignore::rfc_fx.LateCallWarning")
def test_contexts_keep_separate_state() -> None:
    model, cached, kwargs = dit(method=rfc.RFC(tau=0.3))
    other = {**kwargs, "class_labels": torch.tensor([3, 4])}
    expected = [generation(rfc_fx.transform(model, rfc.RFC(tau=0.3)), inputs) for inputs in (kwargs, other)]
    got: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for i in range(8):
            for stream, (name, inputs) in enumerate((("cond", kwargs), ("uncond", other))):
                if name == "uncond" and i == 5:
                    continue  # guidance off for one step: call parity would now swap the two
                with cached.cache_context(name):
                    got[stream].append(sample(cached(**moved(inputs, i, 8))))
    assert torch.equal(torch.stack(got[0]), expected[0])
    assert torch.equal(torch.stack(got[1][:5]), expected[1][:5])
    assert set(cached.contexts) == {"cond", "uncond"}
    assert cached.contexts["uncond"].step == 7


def test_two_models_interleaved_do_not_meet() -> None:
    model, first, kwargs = dit(method=rfc.RFC(tau=0.3))
    second = rfc_fx.transform(model, rfc.TaylorSeer(interval=3, order=1))
    expected = generation(first, kwargs), generation(second, kwargs)
    first.reset()
    second.reset()
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.no_grad():
        for i in range(8):
            for row, cached in zip(rows, (first, second), strict=True):
                row.append(sample(cached(**moved(kwargs, i, 8))))
    assert torch.equal(torch.stack(rows[0]), expected[0])
    assert torch.equal(torch.stack(rows[1]), expected[1])


def test_threads_do_not_meet() -> None:
    model, cached, kwargs = dit(method=rfc.RFC(tau=0.3))
    inputs = [{**kwargs, "class_labels": torch.tensor([c, c])} for c in range(3)]
    expected = [generation(rfc_fx.transform(model, rfc.RFC(tau=0.3)), one) for one in inputs]
    cached.trace(**inputs[0])
    got: dict[int, Tensor] = {}

    def work(stream: int) -> None:
        with cached.cache_context(f"request {stream}"):
            got[stream] = generation(cached, inputs[stream])

    threads = [threading.Thread(target=work, args=(stream,)) for stream in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in range(3):
        assert torch.equal(got[stream], expected[stream])


def test_deepcopy_has_its_own_weights_and_no_state() -> None:
    model, cached, kwargs = dit(method=rfc.RFC(tau=0.3))
    expected = generation(cached, kwargs)
    twin = copy.deepcopy(cached)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert twin.options == cached.options
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(generation(twin, kwargs), expected)


def test_configurations_pickle_and_cached_models_say_why_not() -> None:
    method = rfc.Method(estimator=rfc.Projective(order=2), schedule=rfc.RCS(tau=0.2))
    assert pickle.loads(pickle.dumps(method)) == method
    _, cached, _ = dit()
    with pytest.raises(rfc_fx.RFCError, match="pickle the model and the method"):
        pickle.dumps(cached)


@pytest.mark.parametrize("dispatch", ["host", "cond"])
def test_reset_begins_a_new_generation_and_keeps_the_record_until_then(dispatch: Any) -> None:
    _, cached, kwargs = dit(method=rfc.RFC(tau=0.3), dispatch=dispatch)
    expected = generation(cached, kwargs)
    record = cached.stats.phases
    cached._reset_stateful_cache()  # what a diffusers pipeline calls at its end
    assert cached.stats.phases == record
    late = {**kwargs, "timestep": kwargs["timestep"] * 0}  # no timestep says that this is a new generation
    with torch.no_grad():
        for _ in range(2):
            cached(**late)
    assert cached.stats.phases == ["FULL", "FULL"]
    cached.reset()
    assert torch.equal(generation(cached, kwargs), expected)


def test_a_new_shape_gets_programs_of_its_own_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_cache, "MAX_SIGNATURES", 3)
    _, cached, kwargs = dit(method=rfc.FullCompute())
    for rows in range(1, 5):
        with torch.no_grad():
            out = cached(
                torch.randn(rows, 4, 8, 8), timestep=torch.full((rows,), 5), class_labels=torch.zeros(rows, dtype=torch.long)
            ).sample
        assert out.shape[0] == rows
    assert len(cached.cache) == len(cached.driver.generations) == 3
    assert kwargs["hidden_states"].shape[0] == 2


def test_weights_that_change_or_move_are_seen() -> None:
    model, cached, kwargs = dit(method=rfc.FullCompute())
    generation(cached, kwargs, steps=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(generation(cached, kwargs, steps=2), generation(model, kwargs, steps=2))
    cached.to(torch.bfloat16)
    half = {**kwargs, "hidden_states": kwargs["hidden_states"].bfloat16()}
    assert torch.equal(generation(cached, half, steps=2), generation(model, half, steps=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_in_state_and_output(dtype: torch.dtype) -> None:
    model, kwargs = FAMILIES["dit"]()
    cached = rfc_fx.transform(model.to(dtype), rfc.RFC(tau=0.3, order=2))
    half = {**kwargs, "hidden_states": kwargs["hidden_states"].to(dtype)}
    out = generation(cached, half)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert {row.dtype for row in cached.plan().slots if row.name.endswith((".O", ".dO1", ".I"))} == {dtype}
    assert {row.dtype for row in cached.plan().slots if row.name.endswith((".speed", ".g12"))} == {torch.float32}


@pytest.mark.parametrize("granularity", ["block", "stack"])
def test_a_stream_that_begins_in_another_precision_keeps_the_models(granularity: str) -> None:
    model, kwargs = FAMILIES["dit"]()  # its position embedding is float32, whatever its weights are
    half = {**kwargs, "hidden_states": kwargs["hidden_states"].bfloat16()}
    cached = rfc_fx.transform(model.to(torch.bfloat16), rfc.FORA(interval=3), config=rfc_fx.Config(granularity=granularity))
    assert generation(cached, half).dtype == torch.bfloat16
    assert "ESTIMATE" in cached.stats.phases
    assert {row.dtype for row in cached.plan().slots} == {torch.bfloat16}


def test_it_works_under_inference_mode_and_outside_it_in_turn() -> None:
    _, cached, kwargs = dit(method=rfc.RFC(tau=0.3))
    with torch.inference_mode():
        expected = generation(cached, kwargs)
    assert torch.equal(generation(cached, kwargs), expected.clone())


def test_summary_tells_what_was_computed_and_what_it_held() -> None:
    _, cached, kwargs = dit(method=rfc.TaylorSeer(interval=4, order=1))
    generation(cached, kwargs, steps=10)
    text = str(cached.summary())
    assert "DiTTransformer2DModel: TaylorSeer(interval=4)" in text
    assert "##...#...#" in text
    assert "4 sites; state 0.02 MiB per context" in text
    assert cached.stats.nfc == 4


def test_a_generation_that_skips_nothing_warns_once() -> None:
    _, cached, kwargs = dit(method=rfc.RFC(tau=1e-9))
    generation(cached, kwargs)
    with pytest.warns(rfc_fx.NothingSkippedWarning, match="all 8 steps of a generation were computed in full"):
        cached.reset()
    generation(cached, kwargs)
    cached.reset()


PLACED = rfc.Chebyshev(nfc=4, num_steps=10)


@pytest.mark.parametrize("dispatch", ["host", "cond"])
@pytest.mark.parametrize("steps", [8, 12])
def test_a_generation_of_another_length_than_its_full_steps_are_for_warns_once(steps: int, dispatch: Any) -> None:
    _, cached, kwargs = dit(method=PLACED, dispatch=dispatch)
    generation(cached, kwargs, steps=10)
    cached.reset()  # says nothing

    def another() -> None:
        generation(cached, kwargs, steps=steps)
        cached.reset()

    with pytest.warns(rfc_fx.StepsMismatchWarning, match=r"steps, but the full steps were placed for one of 10"):
        another()
    another()


def test_timesteps_of_another_number_than_the_full_steps_are_for_warn_before_they_run() -> None:
    _, cached, _ = dit(method=PLACED)
    with pytest.warns(rfc_fx.StepsMismatchWarning, match="a generation of 20 steps"):
        cached.prepare(range(20, 0, -1))
    cached.prepare(range(20, 0, -1))


@torch.no_grad()
def test_steps_that_were_counted_before_the_direction_was_known_are_not_missed() -> None:
    _, cached, kwargs = dit(method=PLACED)
    for _ in range(2):
        for step in range(10):
            cached(**{**moved(kwargs, step, 10), "timestep": torch.full((2,), 100 * step)})
    cached.reset()  # says nothing


def test_without_a_method_the_source_chooses_the_default() -> None:
    model, kwargs = FAMILIES["dit"]()
    scheduler = DDIMScheduler()
    assert rfc_fx.transform(model, example_inputs=kwargs).method == rfc.RFC()
    assert rfc_fx.transform(model, source=scheduler).method == rfc.LogSNR()  # bound when a generation begins
    assert rfc_fx.transform(model, rfc.FORA(), source=scheduler).method == rfc.FORA()
    with pytest.raises(TypeError, match=r"expected a pipeline with a scheduler, or a scheduler, got str"):
        rfc_fx.transform(model, rfc.FORA(), source="ddim")


RISING = {"fora": rfc.FORA(interval=3), "taylor": rfc.TaylorSeer(interval=4, order=2), "rfc": rfc.RFC(tau=0.3, order=2)}


@pytest.mark.parametrize("method", RISING.values(), ids=RISING)
@torch.no_grad()
def test_a_timestep_that_rises_from_noise_to_image_is_known_from_the_first_generation_on(method: Any) -> None:
    """Law 9 for models whose timestep rises: nobody says so, and yet the first generation is as all others."""
    model, cached, kwargs = dit(method=method)
    twin, hoisted = rfc.eager.cached(model, method), rfc_fx.transform(model, method, config=rfc_fx.Config(hoist=True))
    first: list[torch.Tensor] = []
    for _ in range(2):
        drawn = []
        for step in range(10):
            call = {**moved(kwargs, step, 10), "timestep": torch.full((2,), 100 * step)}
            results = [sample(each(**call)) for each in (cached, twin, hoisted)]
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
            drawn.append(results[0])
        first = first or drawn
        assert all(map(torch.equal, drawn, first))
        assert cached.stats.phases == twin.stats.phases == hoisted.stats.phases
        assert len(cached.stats.phases) == 10
        assert "ESTIMATE" in cached.stats.phases


@torch.no_grad()
def test_full_steps_are_where_they_were_placed_from_the_first_generation_on_although_the_timestep_rises() -> None:
    """With one leading full step the second one is full too, once: until the third call it may have begun a generation that falls."""
    method = rfc.Chebyshev(nfc=5, num_steps=10)
    model, cached, kwargs = dit(method=method)
    twin, hoisted = rfc.eager.cached(model, method), rfc_fx.transform(model, method, config=rfc_fx.Config(hoist=True))
    placed = method.schedule.full_steps  # type: ignore[attr-defined]
    assert 1 not in placed
    for full in ({1, *placed}, {*placed}, {*placed}):
        for step in range(10):
            call = {**moved(kwargs, step, 10), "timestep": torch.full((2,), 100 * step)}
            results = [sample(each(**call)) for each in (cached, twin, hoisted)]
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
        for each in (cached, twin, hoisted):
            assert {step for step, phase in enumerate(each.stats.phases) if phase == "FULL"} == full


@pytest.mark.parametrize("method", RISING.values(), ids=RISING)
@torch.no_grad()
def test_a_call_to_warm_up_changes_nothing(method: Any) -> None:
    model, cached, kwargs = dit(method=method)
    warmed, twin = rfc_fx.transform(model, method), rfc.eager.cached(model, method)
    for each in (warmed, twin):
        each(**{**kwargs, "timestep": kwargs["timestep"] // 2})
    for step in range(10):
        results = [sample(each(**moved(kwargs, step, 10))) for each in (cached, warmed, twin)]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


def test_another_threshold_needs_no_new_programs_and_another_estimator_is_refused() -> None:
    _, cached, kwargs = dit(method=rfc.RFC(tau=1e-9))
    generation(cached, kwargs, steps=3)
    programs = cached.programs
    cached.method = rfc.RFC(tau=0.5)
    generation(cached, kwargs)
    assert cached.programs is programs
    assert "ESTIMATE" in cached.stats.phases
    with pytest.raises(rfc_fx.RFCError, match=r"needs other programs than .*call rfc_fx.transform again"):
        cached.method = rfc.TaylorSeer(interval=4)


def test_wrong_arguments_are_refused_with_the_way_out() -> None:
    model, kwargs = FAMILIES["dit"]()
    cached = rfc_fx.transform(model)
    for wrong, message in (
        (lambda: rfc_fx.transform("model"), "for a pipeline pass pipe.transformer"),
        (lambda: rfc_fx.transform(cached), "transformed already"),
        (lambda: rfc_fx.transform(model, "rfc"), "must be an rfc method such as"),
        (lambda: rfc_fx.transform(model, config={"hoist": True}), "config must be a rfc_fx.Config such as"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()
    with pytest.raises(rfc_fx.CaptureError, match="transform first, compile after"):
        rfc_fx.transform(torch.compile(model, backend="eager"))
    with pytest.raises(TypeError, match="missing a required argument"):
        cached()
    with pytest.raises(TypeError, match="unexpected keyword argument 'latent'; the signature is"):
        cached(**kwargs, latent=kwargs["hidden_states"])
    with pytest.raises(rfc_fx.SignatureError, match="timestep must be a tensor, got str"):
        cached(**{**kwargs, "timestep": "500"})
    with pytest.raises(rfc_fx.SignatureError, match="requires grad"):
        cached(**{**kwargs, "hidden_states": kwargs["hidden_states"].requires_grad_()})
    model.train()
    with pytest.raises(rfc_fx.RFCError, match=r"training mode; call .eval\(\) first"):
        cached(**kwargs)


def test_an_uncompiled_call_that_fails_leaves_no_half_written_generation() -> None:
    model, cached, kwargs = dit(method=rfc.RFC(tau=0.3))
    expected = generation(cached, kwargs)
    with torch.no_grad(), pytest.raises(Exception, match=r"."):
        cached(**{**kwargs, "hidden_states": torch.randn(2, 4, 8, 7)})
    assert torch.equal(generation(cached, kwargs), expected)
    assert torch.equal(generation(model, kwargs, steps=2), generation(rfc_fx.transform(model, rfc.FullCompute()), kwargs, steps=2))


class TwoTimes(nn.Module):
    """Two arguments that a pipeline may pass as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        x = hidden_states * timestep.reshape(-1, 1, 1) + sigma.reshape(-1, 1, 1)
        for block in self.blocks:
            x = x + block(nn.functional.layer_norm(x, (8,)))
        return x


@torch.no_grad()
def test_one_tensor_passed_for_two_arguments_is_two_arguments_in_later_calls() -> None:
    model, x, t = TwoTimes().eval(), torch.randn(2, 4, 8), torch.tensor([0.5, 0.5])
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.0), example_inputs={"hidden_states": x, "timestep": t, "sigma": t})
    for timestep, sigma in ((t, t), (t, t - 0.25), (t - 0.25, t)):
        assert torch.equal(cached(x, timestep, sigma), model(x, timestep, sigma))
    assert len(cached.cache) == 1
