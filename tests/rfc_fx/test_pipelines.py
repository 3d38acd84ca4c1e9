"""Real diffusers pipelines with a transformed model in them: the whole call, in the ways in which it is used."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import diffusers
import pipelines
import pytest
import torch
import torch._dynamo.testing
from accelerate import cpu_offload
from diffusers.callbacks import SD3CFGCutoffCallback
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from pipelines import PIPELINES, run
from tolerances import INDUCTOR, WHOLE_CALL
from torch import Tensor, nn

import rfc
import rfc.eager
import rfc_fx
from rfc_fx.runtime.program_cache import MAX_SIGNATURES

pytestmark = pytest.mark.usefixtures("captured_once")

METHOD = rfc.RFC(tau=0.3)
FAST = ("dit", "pixart_sigma", "sd3", "flux", "wan")
WITHOUT_TWIN = {
    "flux2": "one projection for attention and MLP",
    "hunyuan_video": "its single-stream attention returns two streams",
    "z_image": "its first attention sees the text alone",
    "lumina2": "its first attention sees the text alone",
}
"""Models that the twin does not know, with what stands in its way."""

ALL = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PIPELINES]


def transformed(build: Callable[..., pipelines.Tiny], *args: Any, method: Any = METHOD) -> tuple[Any, rfc_fx.CachedModel, Any]:
    pipe, prompt = build(*args)
    pipe.transformer = model = rfc_fx.transform(pipe.transformer, method)
    return pipe, model, prompt


def fresh(build: Callable[..., pipelines.Tiny], *args: Any, prompt: int = 0, samples: int = 1, **call: Any) -> Tensor:
    """What a pipeline gives that was transformed for this call alone."""
    pipe, _, arguments = transformed(build, *args)
    return run(pipe, arguments(prompt, samples), **call)


def phases(model: Any) -> dict[str, str]:
    return {name: "".join(phase[0] for phase in record.phases) for name, record in model.contexts.items()}


def close(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ALL)
def test_a_whole_call_with_all_steps_full_is_the_untouched_one_and_a_cached_one_is_the_twins(name: str) -> None:
    pipe, prompt = PIPELINES[name]()
    plain = pipe.transformer
    untouched = [run(pipe, prompt(), output_type=kind) for kind in ("latent", "pt")]
    pipe.transformer = model = rfc_fx.transform(plain, rfc.RFC(tau=0.0))
    for expected, kind in zip(untouched, ("latent", "pt"), strict=True):
        assert torch.equal(run(pipe, prompt(), output_type=kind), expected)
    assert set("".join(phases(model).values())) == {"F"}

    model.method = METHOD
    cached, decided = run(pipe, prompt()), phases(model)
    assert all("E" in steps and len(steps) == 8 for steps in decided.values())
    assert torch.equal(run(pipe, prompt()), cached)  # diffusers' reset ended the generation
    assert rfc.LogSNR(pipe.scheduler).schedule.num_steps == 8
    if name not in WITHOUT_TWIN:
        pipe.transformer = twin = rfc.eager.cached(plain, METHOD)
        assert close(run(pipe, prompt()), cached) <= WHOLE_CALL
        assert phases(twin) == decided


@pytest.mark.parametrize("name", ["dit", "sd3", "flux"])
def test_full_steps_lie_where_the_noise_levels_of_the_pipeline_place_them(name: str) -> None:
    pipe, prompt = PIPELINES[name]()
    pipe.transformer = model = rfc_fx.transform(pipe.transformer, source=pipe)
    run(pipe, prompt())
    full = rfc.LogSNR(pipe.scheduler).schedule.full_steps  # type: ignore[attr-defined]  # as the pipeline has set it
    assert len(full) == 2
    assert set(phases(model).values()) == {"".join("F" if step in full else "E" for step in range(8))}


class Named(nn.Module):
    """A model whose every call is made in the context of its text: what a pipeline does that names its contexts itself."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        with self.model.cache_context(str(float(encoder_hidden_states.sum()))):
            return self.model(*args, encoder_hidden_states=encoder_hidden_states, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)


IMG2IMG = {"image": torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)}


def flux_without_contexts() -> pipelines.Tiny:
    """Guidance by separate calls that nobody names."""
    pipe, prompt = pipelines.flux("FluxImg2ImgPipeline")
    return pipe, lambda *which: {**prompt(*which), **IMG2IMG, "strength": 1.0}


@pytest.mark.parametrize("build", [flux_without_contexts, pytest.param(pipelines.lumina2, marks=pytest.mark.slow)])
def test_conditional_and_unconditional_calls_that_nobody_names_keep_separate_state(build: Callable[..., pipelines.Tiny]) -> None:
    pipe, model, prompt = transformed(build)
    expected = run(pipe, prompt())
    assert len(decided := sorted(phases(model).values())) == 2
    assert all(len(steps) == 8 and "E" in steps for steps in decided)
    pipe.transformer = Named(model)
    assert torch.equal(run(pipe, prompt()), expected)
    named = [steps for name, steps in phases(model).items() if not name.startswith("default")]
    assert sorted(named) == decided


def test_guidance_that_is_off_for_some_steps_leaves_the_conditional_state_alone() -> None:
    """Wan asks at each step whether guidance is on; a callback switches it off for steps 3 to 5. Nobody says the sampler: a warning."""

    def interval(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if step + 1 in (3, 4, 5) else 5.0
        return given

    pipe, model, prompt = transformed(pipelines.wan, method=rfc.FORA(interval=3))
    for number in range(2):
        with pytest.warns(rfc_fx.LateCallWarning, match=r"source=scheduler") if not number else nullcontext():
            run(pipe, prompt(), steps=9, callback_on_step_end=interval)
        assert phases(model) == {"cond": "FFEEFEEFE", "uncond": "FFEEFE"}


GUIDANCE = {
    "cut off": {"callback_on_step_end": SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=4)},
    "with skipped layers": {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.7},
}


@pytest.mark.parametrize("way", GUIDANCE)
def test_guidance_that_changes_the_batch_or_the_blocks_has_programs_of_its_own(way: str) -> None:
    pipe, prompt = pipelines.sd3()
    plain = pipe.transformer
    call = {**prompt(), **GUIDANCE[way]}
    untouched = run(pipe, call, steps=10)
    pipe.transformer = model = rfc_fx.transform(plain, rfc.RFC(tau=0.0))
    assert torch.equal(run(pipe, call, steps=10), untouched)
    model.method = METHOD
    expected = run(pipe, call, steps=10)
    assert sorted(map(len, phases(model).values())) in ([5, 5], [6, 10])
    assert "E" in phases(model)["default"]
    run(pipe, prompt(1), seed=1, steps=6)
    assert torch.equal(run(pipe, call, steps=10), expected)


CALLS: list[dict[str, Any]] = [
    {},
    {"prompt": 1, "seed": 3, "steps": 5},
    {"height": 24, "width": 8},
    {"samples": 2},
    {"num_images_per_prompt": 2},
]


@pytest.mark.parametrize(
    ("build", "calls"), [(pipelines.pixart_sigma, CALLS), (pipelines.flux, CALLS[:2])], ids=["one batch", "separate calls"]
)
def test_a_generation_never_depends_on_an_earlier_one(build: Callable[..., pipelines.Tiny], calls: list[dict[str, Any]]) -> None:
    pipe, model, prompt = transformed(build)
    expected = [fresh(build, **call) for call in calls]
    for turn in (calls, calls[::-1]):
        for call in turn:
            given = dict(call)
            arguments = prompt(given.pop("prompt", 0), given.pop("samples", 1))
            assert torch.equal(run(pipe, arguments, **given), expected[calls.index(call)])
    assert len(model.cache) == len({str(result.shape) for result in expected})


@pytest.mark.slow
def test_programs_of_many_resolutions_are_bounded_and_those_that_went_come_back() -> None:
    pipe, model, prompt = transformed(pipelines.pixart_sigma)
    expected = run(pipe, prompt(), steps=5)
    for width in range(1, MAX_SIGNATURES + 1):
        run(pipe, prompt(), steps=2, width=8 * width, height=8)
    assert len(model.cache) == len(model.driver.generations) == MAX_SIGNATURES
    assert torch.equal(run(pipe, prompt(), steps=5), expected)


@pytest.mark.parametrize("family", [pytest.param(pipelines.sd3, marks=pytest.mark.slow), pipelines.flux])
def test_img2img_starts_in_the_middle(family: Callable[..., pipelines.Tiny]) -> None:
    pipe, model, prompt = transformed(family)
    kind = {"sd3": "StableDiffusion3Img2ImgPipeline", "flux": "FluxImg2ImgPipeline"}[family.__name__]
    call = {**prompt(), **IMG2IMG, "strength": 0.5}
    expected = fresh(family, kind, steps=16, **call)
    first = run(pipe, prompt())
    inside = getattr(diffusers, kind)(**pipe.components)
    for _ in range(2):
        assert torch.equal(run(inside, call, steps=16), expected)
        assert all(len(steps) == 8 and "E" in steps for steps in phases(model).values() if steps)
        assert torch.equal(run(pipe, prompt()), first)


@pytest.mark.slow
def test_two_transformers_that_share_the_steps_each_have_a_generation() -> None:
    pipe, prompt = pipelines.wan(2)
    untouched = run(pipe, prompt(), steps=12)
    models = [rfc_fx.transform(each, rfc.RFC(tau=0.0)) for each in (pipe.transformer, pipe.transformer_2)]
    pipe.transformer, pipe.transformer_2 = models
    assert torch.equal(run(pipe, prompt(), steps=12), untouched)
    for model in models:
        model.method = METHOD
    cached = run(pipe, prompt(), steps=12)
    early, late = (phases(model)["cond"] for model in models)
    assert len(early) + len(late) == 12
    assert "E" in early
    assert "E" in late
    assert torch.equal(run(pipe, prompt(), steps=12), cached)


HEUN = {
    "pixart": (pipelines.pixart_sigma, diffusers.HeunDiscreteScheduler),
    "sd3": (pipelines.sd3, diffusers.FlowMatchHeunDiscreteScheduler),
}


@pytest.mark.parametrize("name", HEUN)
def test_a_sampler_that_calls_twice_per_step_is_one_generation(name: str) -> None:
    build, scheduler = HEUN[name]
    pipe, prompt = build()
    plain, pipe.scheduler = pipe.transformer, scheduler()
    pipe.transformer = model = rfc_fx.transform(plain, METHOD, source=pipe)
    cached = run(pipe, prompt())
    (steps,) = phases(model).values()
    assert len(steps) == rfc.LogSNR(pipe.scheduler).schedule.num_steps == 15  # the last step has no second call
    assert "E" in steps
    pipe.transformer = twin = rfc.eager.cached(plain, METHOD)
    assert close(run(pipe, prompt()), cached) <= WHOLE_CALL
    assert list(phases(twin).values()) == [steps]


@pytest.mark.parametrize("build", [pipelines.sd3, pipelines.flux], ids=["one batch", "separate calls"])
def test_a_pipeline_that_failed_in_the_middle_can_be_called_again(build: Callable[..., pipelines.Tiny]) -> None:
    def give_up(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            raise KeyboardInterrupt
        return given

    pipe, _, prompt = transformed(build)
    expected = run(pipe, prompt())
    for again in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            run(pipe, prompt(again), seed=again, callback_on_step_end=give_up)
        assert torch.equal(run(pipe, prompt()), expected)


def test_a_loop_that_was_left_early_is_ended_by_reset_when_the_next_one_starts_further_along() -> None:
    pipe, model, prompt = transformed(pipelines.flux)
    inside = diffusers.FluxImg2ImgPipeline.from_pipe(pipe, transformer=model)
    call = {**prompt(), **IMG2IMG, "strength": 0.5}
    expected = run(inside, call, steps=16)

    def give_up(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inside, {**call, "strength": 0.9}, seed=1, steps=16, callback_on_step_end=give_up)
    model.reset()
    assert torch.equal(run(inside, call, steps=16), expected)


def test_one_step_generations_are_told_apart_by_the_reset_of_diffusers() -> None:
    pipe, model, prompt = transformed(pipelines.pixart_sigma)
    for seed in range(5):
        got = run(pipe, prompt(seed), seed=seed, steps=1)
        assert phases(model) == {"default": "F"}
        assert all(context.has_ended for context in model.driver.generations)
    assert torch.equal(got, fresh(pipelines.pixart_sigma, prompt=4, seed=4, steps=1))


def test_callbacks_see_and_change_every_step() -> None:
    met: list[int] = []

    def halve(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        met.append(step)
        return {"latents": given["latents"] * 0.9, "prompt_embeds": given["prompt_embeds"] * 0.9}

    names = ["latents", "prompt_embeds"]
    pipe, model, prompt = transformed(pipelines.flux)
    cached = run(pipe, prompt(), callback_on_step_end=halve, callback_on_step_end_tensor_inputs=names)
    assert met == list(range(8))
    assert all("E" in steps and len(steps) == 8 for steps in phases(model).values())
    pipe.transformer = rfc.eager.cached(model.model, METHOD)
    twin = run(pipe, prompt(), callback_on_step_end=halve, callback_on_step_end_tensor_inputs=names)
    assert close(cached, twin) <= WHOLE_CALL


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_a_pipeline_in_half_precision_whether_it_was_cast_before_or_after(dtype: torch.dtype) -> None:
    pipe, prompt = pipelines.dit()
    untouched = run(pipe.to(dtype), prompt())
    pipe.transformer = before = rfc_fx.transform(pipe.transformer, rfc.RFC(tau=0.0))
    assert torch.equal(run(pipe, prompt()), untouched)
    before.method = METHOD
    expected = run(pipe, prompt())
    assert "E" in phases(before)["default"]

    pipe, _, prompt = transformed(pipelines.dit)
    single = run(pipe, prompt())
    pipe.to(dtype)
    assert pipe.transformer.dtype == dtype
    assert torch.equal(run(pipe, prompt()), expected)
    assert expected.dtype == dtype != single.dtype


def load(pipe: Any) -> None:
    """An adapter of rank 2 on every projection to queries and values, as a file would have it."""
    draw = torch.Generator().manual_seed(5)
    state = {}
    for name, linear in getattr(pipe.transformer, "model", pipe.transformer).named_modules():
        if isinstance(linear, nn.Linear) and name.endswith(("to_q", "to_v")):
            state[f"transformer.{name}.lora_A.weight"] = 0.3 * torch.randn(2, linear.in_features, generator=draw)
            state[f"transformer.{name}.lora_B.weight"] = 0.3 * torch.randn(linear.out_features, 2, generator=draw)
    pipe.load_lora_weights(state, adapter_name="style")


def add(pipe: Any) -> None:
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


@pytest.mark.parametrize("adapt", [load, pytest.param(add, marks=pytest.mark.slow)])
def test_an_adapter_does_the_same_before_and_after_the_transform(adapt: Callable[[Any], None]) -> None:
    pipe, prompt = pipelines.flux()
    adapt(pipe)
    pipe.transformer = rfc_fx.transform(pipe.transformer, METHOD)
    expected = run(pipe, prompt())
    pipe, _, prompt = transformed(pipelines.flux)
    plain = run(pipe, prompt())
    adapt(pipe)
    assert torch.equal(run(pipe, prompt()), expected)
    assert not torch.equal(expected, plain)


def test_what_a_pipeline_does_with_adapters_reaches_the_transformed_model() -> None:
    acts: dict[str, Callable[[Any], Any]] = {
        "load": load,
        "rescale": lambda pipe: pipe.set_adapters(["style"], [0.5]),
        "disable": lambda pipe: pipe.disable_lora(),
        "enable and fuse": lambda pipe: (pipe.enable_lora(), pipe.fuse_lora()),
        "unfuse": lambda pipe: pipe.unfuse_lora(),
        "unload": lambda pipe: pipe.unload_lora_weights(),
    }
    plain, prompt = pipelines.flux()
    pipe, _, _ = transformed(pipelines.flux, method=rfc.RFC(tau=0.0))
    without = run(plain, prompt(), steps=3)
    for name, act in acts.items():
        for each in (plain, pipe):
            act(each)
        expected = run(plain, prompt(), steps=3)
        assert torch.equal(run(pipe, prompt(), steps=3), expected), name
        assert (close(expected, without) < 1e-4) == (name in ("disable", "unload")), name  # unfusing rounds the weights


def test_a_saved_pipeline_names_the_model_and_loads_without_this_package(tmp_path: Any) -> None:
    pipe, _, prompt = transformed(pipelines.pixart_sigma, method=rfc.RFC(tau=0.0))
    expected = run(pipe, prompt())
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.transformer) is diffusers.PixArtTransformer2DModel
    assert torch.equal(run(loaded, prompt()), expected)


def test_offloading_of_whole_models_works_after_the_transform() -> None:
    pipe, model, prompt = transformed(pipelines.pixart_sigma)
    expected = run(pipe, prompt())
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # diffusers puts the hooks on anew after each call
        assert torch.equal(run(pipe, prompt()), expected)
    assert model._hf_hook is not None
    pipe.remove_all_hooks()
    assert torch.equal(run(pipe, prompt()), expected)


CPU = torch.device("cpu")


def offload_layers(model: nn.Module) -> None:
    cpu_offload(model, execution_device=CPU, offload_buffers=True)


def offload_groups(model: nn.Module) -> None:
    apply_group_offloading(model, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


@pytest.mark.parametrize("when", ["before the transform", "before the first call", "after a call"])
@pytest.mark.parametrize(
    ("offload", "text"),
    [
        (offload_layers, r"offloading hook of accelerate.*call pipe\.enable_model_cpu_offload\(\)"),
        (offload_groups, r"hooks of diffusers \(group_offloading\).*call pipe\.enable_model_cpu_offload\(\)"),
    ],
)
def test_offloading_of_parts_is_refused(offload: Callable[[nn.Module], None], text: str, when: str) -> None:
    pipe, model, prompt = transformed(pipelines.pixart_sigma)
    if when == "after a call":
        run(pipe, prompt())
    offload(model.model if when == "before the transform" else model)
    with pytest.raises(rfc_fx.CaptureError, match=text):
        rfc_fx.transform(model.model) if when == "before the transform" else run(pipe, prompt())


def test_a_compiled_transformer_is_refused_with_the_right_order() -> None:
    pipe, _ = pipelines.pixart_sigma()
    for compiled in (torch.compile(pipe.transformer, backend="eager"), pipe.transformer):
        pipe.transformer.compile(backend="eager")
        with pytest.raises(rfc_fx.CaptureError, match=r"transform first, compile after: torch\.compile\(rfc_fx\.transform\(model\)\)"):
            rfc_fx.transform(compiled)


def test_embeddings_that_require_grad_are_refused() -> None:
    pipe, _, prompt = transformed(pipelines.flux)
    given = prompt()
    given["prompt_embeds"].requires_grad_()
    with pytest.raises(rfc_fx.RFCError, match=r"requires grad; feature caching is for sampling"):
        run(pipe, given)


@pytest.fixture
def frames() -> Iterator[Any]:
    """Frames that dynamo compiled, with its counters of breaks and recompiles at zero."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.testing.CompileCounterWithBackend("eager")
    torch._dynamo.reset()


@pytest.mark.usefixtures("no_recompiles")
@pytest.mark.parametrize(
    ("build", "in_place"),
    [(pipelines.pixart_sigma, True), pytest.param(pipelines.flux, False, marks=pytest.mark.slow)],  # law 5 of test_compile has contexts
    ids=["one batch, model.compile", "separate calls, torch.compile"],
)
def test_a_compiled_pipeline_has_three_frames_no_break_and_no_recompile(
    build: Callable[..., pipelines.Tiny], in_place: bool, frames: Any
) -> None:
    pipe, model, prompt = transformed(build)
    plain = [run(pipe, prompt(seed), seed=seed, steps=steps) for seed, steps in ((0, 8), (2, 11))]
    model.reset()
    if in_place:
        model.compile(fullgraph=True, backend=frames)
    else:
        pipe.transformer = torch.compile(model, fullgraph=True, backend=frames)
    for seed, steps in ((0, 8), (2, 11)):
        assert torch.equal(run(pipe, prompt(seed), seed=seed, steps=steps), plain[seed // 2])
        assert frames.frame_count == 3
    assert not torch._dynamo.utils.counters["graph_break"]
    if in_place:
        run(pipe, prompt(0, 2))  # another batch size: programs of its own
        assert frames.frame_count == 6
        assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow  # law 2 of test_compile has Inductor, the calls above have the frames
@pytest.mark.compile
def test_inductor_agrees_over_a_whole_call() -> None:
    pipe, model, prompt = transformed(pipelines.pixart_sigma)
    plain, decided = run(pipe, prompt()), phases(model)
    pipe.transformer = torch.compile(model, fullgraph=True)
    assert close(run(pipe, prompt()), plain) <= INDUCTOR
    assert phases(model) == decided
