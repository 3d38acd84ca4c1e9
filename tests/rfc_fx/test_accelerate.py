"""One line for a pipeline: every call is a generation of its own, for its own levels; and nothing is left of it after `restore`."""

import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pipelines
import pytest
import torch
import torch._dynamo.testing
from accelerate.hooks import ModelHook, add_hook_to_module
from pipelines import PIPELINES, run
from small_digits import small_pipeline as digits
from tolerances import WHOLE_CALL
from torch import Tensor, nn

import rfc
import rfc_fx
import rfc_fx.zoo
from rfc_fx.pipelines.accelerated import SpeedupWarning
from rfc_fx.pipelines.choices import REPEATS, chosen
from rfc_fx.pipelines.step_times import StepTimes
from rfc_fx.runtime.stopwatch import Stopwatch

SHOWN = ("dit", "sd3", "flux", "wan")


pytestmark = pytest.mark.usefixtures("captured_once")


def drawn(pipe: Any, steps: int = 10, seed: int = 0) -> Tensor:
    images: Tensor = pipe([3, 8], num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), output_type="latent").images
    return images


def phases(model: Any) -> dict[str, str]:
    return {name: "".join(phase[0] for phase in record.phases) for name, record in model.contexts.items()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "wan" else ()) for name in SHOWN])
def test_every_call_has_full_steps_for_its_own_levels_and_restore_leaves_no_trace(name: str) -> None:
    pipe, prompt = PIPELINES[name]()
    plain = run(pipe, prompt())
    model, kind, before = pipe.transformer, type(pipe), set(vars(pipe))
    assert rfc_fx.accelerate(pipe, compile=False) is pipe
    for steps in (8, 12, 8):
        drawn = run(pipe, prompt(), steps=steps)
        placed = rfc.LogSNR(pipe.scheduler).schedule.full_steps
        for pattern in phases(pipe.transformer).values():
            assert [step for step, phase in enumerate(pattern) if phase == "F"] == list(placed)
    again = run(pipe, prompt())
    assert torch.equal(again, drawn)
    assert isinstance(pipe, kind)
    assert kind.__name__ in repr(type(pipe))
    rfc_fx.restore(pipe)
    assert pipe.transformer is model
    assert type(pipe) is kind
    assert set(vars(pipe)) == before
    assert not [key for key in vars(model) if "rfc" in key.lower()]
    assert torch.equal(run(pipe, prompt()), plain)
    assert not torch.equal(again, plain)


def test_a_component_that_was_exchanged_since_stays() -> None:
    pipe, other = rfc_fx.accelerate(digits(), compile=False), digits().transformer
    pipe.transformer = other
    assert rfc_fx.restore(pipe).transformer is other
    rfc_fx.accelerate(pipe, compile=False)
    pipe.transformer = torch.compile(pipe.transformer)
    assert rfc_fx.restore(pipe).transformer is other


def test_a_component_that_was_exchanged_since_is_accelerated_when_it_is_asked_for_again() -> None:
    pipe = rfc_fx.accelerate(digits(), compile=False)
    pipe.transformer = digits().transformer
    drawn(rfc_fx.accelerate(pipe, compile=False))
    assert pipe.transformer.stats.nfc == 3


def test_what_all_steps_full_gives_is_the_untouched_pipelines() -> None:
    pipe, prompt = PIPELINES["flux"]()
    plain = run(pipe, prompt())
    rfc_fx.accelerate(pipe, rfc.FullCompute(), config=rfc_fx.Config(hoist=False), compile=False)
    assert torch.equal(run(pipe, prompt()), plain)


def test_two_denoisers_have_full_steps_in_their_own_parts_of_the_levels() -> None:
    pipe, prompt = pipelines.wan(2)
    rfc_fx.accelerate(pipe, nfc=8, compile=False)
    run(pipe, prompt(), steps=20)
    first, second = (phases(model) for model in (pipe.transformer, pipe.transformer_2))
    assert set(first) == set(second) == {"cond", "uncond"}
    high, low = first["cond"], second["cond"]
    assert len(high) + len(low) == 20
    assert high.count("F") + low.count("F") == 8
    assert high[0] == low[0] == "F"
    assert "E" in high
    assert "E" in low
    text = str(rfc_fx.summary(pipe))
    assert "transformer: " in text
    assert "transformer_2: " in text


def test_settings_change_without_another_capture_and_others_with_one() -> None:
    pipe = rfc_fx.accelerate(digits(), compile=False)
    drawn(pipe)
    model = pipe.transformer
    rfc_fx.accelerate(pipe, nfc=5, compile=False)
    drawn(pipe)
    assert pipe.transformer is model
    assert (model.stats.nfc, len(model.cache)) == (5, 1)
    rfc_fx.accelerate(pipe, rfc.TaylorSeer(interval=3, order=1), compile=False)
    drawn(pipe)
    assert pipe.transformer is not model
    assert pipe.transformer.stats.phases == ["FULL" if step in (0, 1, 4, 7) else "ESTIMATE" for step in range(10)]
    rfc_fx.restore(pipe)
    with pytest.raises(ValueError, match=r"^DigitsPipeline is not accelerated; call rfc_fx.accelerate\(pipe\) first"):
        rfc_fx.summary(pipe)


@pytest.mark.filterwarnings("ignore:.*nothing to skip")
@pytest.mark.parametrize(("nfc", "full"), [(None, 3), (0.5, 5), (7, 7), (40, 10)])
def test_full_steps_as_a_number_or_as_a_share(nfc: float | None, full: int) -> None:
    pipe = rfc_fx.accelerate(digits(), nfc=nfc, compile=False)
    drawn(pipe)
    assert pipe.transformer.stats.nfc == full


def test_one_graph_with_its_decision_has_the_full_steps_of_the_host_in_every_call() -> None:
    pipe, call = PIPELINES["flux"]()
    drawn = {}
    for dispatch in ("host", "cond"):
        rfc_fx.accelerate(pipe, nfc=4, compile=False, config=rfc_fx.Config(dispatch=dispatch))  # type: ignore[arg-type]
        for steps in (12, 10):
            latents = run(pipe, call(), num_inference_steps=steps)
            contexts = rfc_fx.summary(pipe).models["transformer"].contexts
            drawn[dispatch, steps] = latents, {name: record.phases for name, record in contexts.items()}
        rfc_fx.restore(pipe)
    for steps in (12, 10):
        assert drawn["host", steps][1] == drawn["cond", steps][1]
        torch.testing.assert_close(drawn["host", steps][0], drawn["cond", steps][0])


def test_a_generation_in_which_nothing_can_be_skipped_says_so_once() -> None:
    pipe = rfc_fx.accelerate(digits(), compile=False)
    plain = drawn(digits(), steps=2)
    with pytest.warns(rfc_fx.NothingSkippedWarning, match="a generation of 2 steps is computed in full") as said:
        images = [drawn(pipe, steps=2) for _ in range(2)]
    assert len(said) == 1
    assert all(torch.allclose(each, plain, atol=1e-5) for each in images)


class StoppedError(Exception):
    """Raised in the middle of a generation."""


def test_a_call_that_is_interrupted_leaves_nothing_for_the_next() -> None:
    pipe, prompt = PIPELINES["flux"]()
    rfc_fx.accelerate(pipe, compile=False)
    expected = run(pipe, prompt())

    def stop(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise StoppedError
        return kwargs

    with pytest.raises(StoppedError):
        run(pipe, prompt(), callback_on_step_end=stop)
    assert torch.equal(run(pipe, prompt()), expected)


def test_image_to_image_begins_in_the_middle_of_the_levels_and_shares_the_models() -> None:
    pipe, prompt = PIPELINES["flux"]()
    rfc_fx.accelerate(pipe, compile=False)
    run(pipe, prompt())
    relative = diffusers.FluxImg2ImgPipeline(**pipe.components)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = {**prompt(), "image": picture, "strength": 0.6}
    run(relative, arguments, steps=20)  # not accelerated itself: the scheduler is the same
    by_itself = phases(pipe.transformer)
    rfc_fx.accelerate(relative, compile=False)
    run(relative, arguments, steps=20)
    assert phases(pipe.transformer) == by_itself
    pattern = next(iter(by_itself.values()))
    assert len(pattern) == 12
    assert pattern.count("F") == round(0.28 * 12)
    rfc_fx.restore(relative)


def test_several_calls_at_once_give_what_each_gives_alone() -> None:
    pipe = rfc_fx.accelerate(digits(), compile=False)
    expected = [drawn(pipe, seed=seed) for seed in range(3)]
    made = [
        rfc_fx.accelerate(type(pipe).__mro__[1](pipe.transformer, type(pipe.scheduler).from_config(pipe.scheduler.config)))
        for _ in range(3)
    ]
    for each in made:
        each.set_progress_bar_config(disable=True)
    got: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        got[seed] = drawn(made[seed], seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[seed], expected[seed]) for seed in range(3))
    assert len(pipe.transformer.cache) == 1


def test_compiled_it_has_one_frame_for_each_program_and_no_recompile() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    plain, pipe = rfc_fx.accelerate(digits(), compile=False), rfc_fx.accelerate(digits(), compile={"backend": counter})
    for steps in (10, 12):
        assert torch.equal(drawn(pipe, steps), drawn(plain, steps))
    assert set(pipe.transformer.programs) == {"TIMESTEP", "FULL", "ESTIMATE"}
    assert counter.frame_count == 2  # the first is computed for all steps at once
    assert not torch._dynamo.utils.counters["graph_break"]


def test_offloading_moves_a_compiled_model_too() -> None:
    pipe = rfc_fx.accelerate(digits(), compile={"backend": "eager"})
    expected = drawn(pipe)
    hooked = pipe.transformer
    add_hook_to_module(hooked, ModelHook())
    assert torch.equal(drawn(pipe), expected)


def test_a_saved_pipeline_is_the_plain_one(tmp_path: Any) -> None:
    pipe = rfc_fx.zoo.digits()
    pipe.set_progress_bar_config(disable=True)
    plain = drawn(pipe)
    rfc_fx.accelerate(pipe, compile=False)
    drawn(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = type(digits()).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(loaded), plain)


def unet() -> Any:
    net = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    return diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (unet, ValueError, r"^accelerate: DDPMPipeline denoises with a U-Net, unet \(UNet2DModel\); rfc-fx caches transformers"),
        (lambda: rfc_fx.zoo.digits().transformer, TypeError, "^accelerate: expected a pipeline of diffusers, got DiTTransformer2DModel"),
        (lambda: "pipe", TypeError, "^accelerate: expected a pipeline of diffusers, got str"),
    ],
)
def test_what_cannot_be_accelerated_is_refused_by_name(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        rfc_fx.accelerate(make())


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"nfc": 0}, ValueError, "nfc must be an integer of at least 1, got 0"),
        ({"nfc": 1.5}, ValueError, "nfc must be a number of full steps, or a share"),
        (
            {"method": rfc.RFC(), "nfc": 5},
            ValueError,
            "accelerate: nfc is for .* RCS of RFC does not place a number of full steps; leave nfc",
        ),
        ({"method": "log-snr", "nfc": 5}, TypeError, "method must be an rfc method"),
        ({"method": "rfc"}, TypeError, "method must be an rfc method"),
        ({"config": {"hoist": True}}, TypeError, "config must be a rfc_fx.Config"),
        ({"compile": 3}, TypeError, "^accelerate: compile must be True, False or arguments of torch.compile"),
    ],
)
def test_wrong_settings_leave_the_pipeline_as_it_was(settings: dict[str, Any], error: type[Exception], match: str) -> None:
    pipe = digits()
    model = pipe.transformer
    with pytest.raises(error, match=match):
        rfc_fx.accelerate(pipe, **settings)
    assert pipe.transformer is model


def test_a_model_that_cannot_be_captured_says_where_and_the_pipeline_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, prompt = PIPELINES["dit"]()
    model, block = pipe.transformer, pipe.transformer.transformer_blocks[1]
    plain, forward = run(pipe, prompt()), type(block).forward

    def branching(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if float(hidden_states.sum()) > 1e9:
            return hidden_states
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(type(block), "forward", branching)
    rfc_fx.accelerate(pipe, compile=False)
    with pytest.raises(rfc_fx.CaptureError, match=r"test_accelerate.py:\d+: if float"):
        run(pipe, prompt())
    assert pipe.transformer is model
    assert float((run(pipe, prompt()) - plain).norm() / plain.norm()) <= WHOLE_CALL


@pytest.fixture
def _own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("_own_cache")
def test_a_speedup_is_reached_by_measured_times_which_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's: a full step takes 1 s, an estimated one 0.1."""
    moment = 0.0

    def now(self: Stopwatch) -> float:
        return moment

    def note(self: Stopwatch, begin: float, phase: str) -> None:
        nonlocal moment
        moment += 1.0 if phase == "FULL" else 0.1
        self._steps.append((begin, moment, phase))

    monkeypatch.setattr(Stopwatch, "now", now)
    monkeypatch.setattr(Stopwatch, "note", note)
    pipe = rfc_fx.accelerate(digits(), speedup=2.5, compile=False)
    drawn(pipe)
    assert pipe.transformer.stats.nfc == 3  # the default share, while nothing is measured
    assert StepTimes(1.0, 0.1).share(2.5) == pytest.approx(1 / 3)
    drawn(pipe, steps=30)
    assert pipe.transformer.stats.nfc == 10
    assert 30 / (10 + 20 * 0.1) == 2.5
    monkeypatch.setattr(Stopwatch, "note", lambda *_: None)
    again = rfc_fx.accelerate(digits(), speedup=2.5, compile=False)
    drawn(again)
    drawn(again, steps=30)
    assert again.transformer.stats.nfc == 10  # read from the disk
    far = rfc_fx.accelerate(digits(), speedup=20, compile=False)
    with pytest.warns(SpeedupWarning, match=r"a speed-up of 20 cannot be reached: an estimated step takes 1/10.0 of a full one"):
        drawn(far)


@pytest.mark.parametrize("settings", [{"speedup": 1}, {"speedup": "2"}, {"speedup": 2.0, "nfc": 3}, {"speedup": 2.0, "method": rfc.RFC()}])
def test_wrong_speedups(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"speedup|place a number of full steps"):
        rfc_fx.accelerate(digits(), **settings)


def test_what_is_chosen() -> None:
    small, large = (nn.Sequential(nn.ModuleList(nn.Linear(2, 2) for _ in range(count))) for count in (2, REPEATS))
    assert not chosen(small).regional
    config = chosen(large)
    assert config.regional
    assert config.hoist
    assert isinstance(config.state_budget, int)
    assert chosen(large, rfc_fx.Config(hoist=False)) == rfc_fx.Config(hoist=False)
