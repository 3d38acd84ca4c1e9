"""The commands for engines: what export builds, what run draws, what verify and bench find, and every error on one line."""

import inspect
import json
import shutil
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import command
import diffusers
import pipeline_folders
import pytest
import torch
import torch.utils._pytree as pytree
from digits_models import digits_folder
from families import dit
from PIL import Image
from safetensors.torch import load_file

import rfc
import rfc_export
import rfc_fx
from rfc_export import ExportError, cli, drawing, engine_source, verify
from rfc_export.bench import Timed
from rfc_export.calls import ExpectedCall, dumped
from rfc_export.commands import run as run_command
from rfc_export.engine_files import EngineFiles
from rfc_export.example_calls import Wanted, parse_batches, parse_sizes
from rfc_export.manifest import MANIFEST
from rfc_export.parity import TOLERANCE, moved
from rfc_export.reading import read_manifest
from rfc_export.seal import sealed
from rfc_export.specs import CallSpec, LeafSpec
from rfc_export.weights import weight_spec
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.load import LoadError, load_scheduler, load_transformer
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.zoo import DIGITS, digits_noise, sample

pytestmark = [pytest.mark.onnx, pytest.mark.usefixtures("captured_once")]

TAU, STEPS = 0.3, 12
FILES = ["images.png", "schedule.png", "summary.json"]


run, one_line_error = partial(command.run, cli.app), partial(command.one_line_error, cli.app)


def ran(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout if arguments[0] != "export" else result.output  # its stages are on standard error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_folder(tmp_path_factory.mktemp("models") / "model", noise=0.1)


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What was printed, and the engine: two samples a call."""
    out = tmp_path_factory.mktemp("engines") / "engine"
    return ran("export", model, "--backend", "onnx", "--batch", "2", "--tau", TAU, "--no-hoist", "--out", out), out


@pytest.fixture(scope="module")
def engine(exported: tuple[str, Path]) -> Path:
    return exported[1]


# ---- export ----------------------------------------------------------------------------------------------------------


def test_export_tells_of_its_stages_sizes_and_how_to_go_on(exported: tuple[str, Path]) -> None:
    printed, out = exported
    for line in ("making programs", "exporting FULL", "exporting ESTIMATE", "checking the engine against the model", f"done: {out}"):
        assert f" s  {line}" in printed
    for path in out.iterdir():
        assert any(line.split()[:2] == [path.name, f"{path.stat().st_size / 2**20:.2f}"] for line in printed.splitlines())
    assert f"rfc-fx run {out}" in printed
    assert f"rfc-fx verify {out} --model" in printed


def test_an_engine_of_digits_knows_its_call_and_its_sampler(engine: Path) -> None:
    manifest = read_manifest(EngineFiles(engine))
    assert {leaf.argument: leaf.shape for leaf in manifest.call.leaves} == {
        "hidden_states": [4, 1, 8, 8],
        "timestep": [4],
        "class_labels": [4],
    }
    assert manifest.sampler is not None
    assert manifest.sampler["kind"] == "digits"
    assert (manifest.sampler["cfg"], manifest.sampler["null_class"]) == (1.5, 10)
    assert manifest.sampler["scheduler"]["clip_sample"] is False
    assert manifest.method["schedule"]["tau"] == TAU
    assert not {"INVARIANT", "TIMESTEP"} & set(manifest.sets[0].programs)


def test_a_batch_repeats_the_inputs_of_one_sample_or_is_refused(model: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(model, tmp_path / "alone")
    (alone / "scheduler_config.json").unlink()
    found = engine_source.exportable(str(alone), torch.float32, torch.device("cpu"), Wanted(batches=[3]))
    assert found.sampler is None
    assert {name: len(value) for name, value in found.calls[0].items()} == {"hidden_states": 6, "timestep": 6, "class_labels": 6}
    with pytest.raises(ExportError, match=r"--batch 2 cannot be made .*; call rfc_export.export"):
        engine_source._repeated("pipeline", {"hidden_states": torch.zeros(1, 4), "img_ids": torch.zeros(7, 3)}, 2)


def test_calls_are_added_verified_and_picked_by_the_size_of_a_batch(engine: Path, model: Path, tmp_path: Path) -> None:
    both = shutil.copytree(engine, tmp_path / "both")
    ran("export", model, "--backend", "onnx", "--batch", "3", "--tau", TAU, "--no-hoist", "--out", both, "--add")
    assert [one.call.leaves[0].shape[0] for one in read_manifest(EngineFiles(both)).sets] == [4, 6]
    ran("run", both, "--classes", "0-4", "--seeds", "1", "--steps", 4, "--out", tmp_path / "drawn")
    assert "filled up" not in (tmp_path / "drawn" / "summary.json").read_text()
    lines = [line for line in ran("verify", both, "--model", model).splitlines() if line.startswith("parity")]
    assert [line.split(", ")[0].split(maxsplit=1)[1] for line in lines] == ["call 1 of 2", "call 2 of 2"]


@pytest.mark.parametrize("text", ["", "0", "1,", "1.5", "10001", "999999", "-1", "many"])
def test_batches_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--batch must be numbers from 1 to 10000 like 4 or 1,4"):
        parse_batches(text)
    assert parse_batches(" 1,4,1") == [1, 4]


@pytest.mark.parametrize("text", ["", "8", "8x", "0x8", "8x8,", "8x8x8", "65537x8", "999999x8", "8X8"])
def test_sizes_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--shapes must be WIDTHxHEIGHT in pixels"):
        parse_sizes(text)
    assert parse_sizes("1024x1024, 768x1344") == [(1024, 1024), (768, 1344)]


# ---- run -------------------------------------------------------------------------------------------------------------


def test_run_draws_what_the_model_draws(engine: Path, model: Path, tmp_path: Path) -> None:
    ran("run", engine, "--classes", "3,7", "--seeds", "2", "--steps", STEPS, "--out", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    for name in FILES[:2]:
        with Image.open(tmp_path / name) as picture:
            picture.verify()
    summary = json.loads((tmp_path / "summary.json").read_text())
    entry = summary["methods"]["engine"]
    cpu = torch.device("cpu")
    cached = rfc_fx.transform(load_transformer(model, torch.float32, cpu), rfc.RFC(tau=TAU))
    loaded = rfc_export.load(engine)
    source = engine_source.engine_source("engine", loaded, [3, 7], [0, 1], None)
    for seed, phases in enumerate(entry["phases"]):
        images = sample(cached, load_scheduler(model), torch.tensor([3, 7]), digits_noise([seed] * 2), steps=STEPS)
        assert phases == "".join("#" if phase == "FULL" else "." for phase in cached.stats.phases)
        drawn = source.draw(loaded, seed, STEPS, lambda: None)
        assert float((drawn - images).norm() / images.norm()) <= TOLERANCE["float32"]
        cached.reset()
    assert 0 < entry["nfc"] < STEPS
    assert summary["settings"]["groups"] == ["3", "7"]
    assert summary["settings"]["samples"] == 4
    assert len(entry["engine"]["times_ms"]) == 2
    assert {"torch", "rfc_fx"} <= summary["versions"].keys()


def test_more_classes_than_fit_run_in_batches_the_last_one_filled_up(engine: Path, tmp_path: Path) -> None:
    printed = " ".join(ran("run", engine, "--classes", "1,2,3", "--seeds", "1", "--steps", STEPS, "--out", tmp_path).split())
    assert "filled up with 1 samples" in printed
    assert "2 batches of classes" in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    (contexts,) = summary["methods"]["engine"]["engine"]["contexts"]
    assert list(contexts) == ["classes 1, 2", "classes 3"]
    source = engine_source.engine_source("engine", rfc_export.load(engine), [1, 2, 3], [0], None)
    images = source.draw(source.model, 0, STEPS, lambda: None)
    assert images.shape == (3, 1, 8, 8)
    alone = engine_source.engine_source("engine", source.model, [3], [0], None).draw(source.model, 0, STEPS, lambda: None)
    assert torch.equal(images[2:], alone)


def test_another_threshold_is_another_schedule(engine: Path, tmp_path: Path) -> None:
    printed = ran("run", engine, "--classes", "3", "--seeds", "1", "--steps", STEPS, "--tau", "0", "--out", tmp_path)
    assert f"{STEPS} of {STEPS} steps full" in printed
    assert "were full with" in " ".join(printed.split())


def test_a_list_that_was_fitted_to_another_sampler_says_so_when_it_draws(engine: Path, model: Path) -> None:
    lambdas = tuple(float(x) for x in torch.linspace(-9, 9, 4))
    schedule = rfc.Weighted(full_steps=[0, 2], num_steps=4, weights=[(0.0,)] * 4, lambdas=lambdas)
    loaded = rfc_export.load(engine)
    source = engine_source.engine_source("engine", loaded, [3], [0], None)
    transformer = load_transformer(model, torch.float32, torch.device("cpu"))
    source.model = cached = cast(
        "Any", rfc_fx.transform(transformer, rfc.Method(estimator=rfc.LinearPrediction(order=1), schedule=schedule))
    )
    cached.manifest = loaded.manifest
    with pytest.warns(rfc_fx.StepsMismatchWarning, match="fitted to the noise levels of 4 steps; this generation of 4 steps has others"):
        source.draw(cached, 0, 4, lambda: None)
    assert len(source.generations["classes 3"].phases) == 4


def test_what_cannot_be_drawn_is_refused_on_one_line(engine: Path, onnx_small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = one_line_error("run", onnx_small, "--out", out)
    assert f"pipe.transformer = rfc_export.load('{onnx_small}')" in text
    assert "--classes must lie in 0-9, got 10" in one_line_error("run", engine, "--classes", "10", "--out", out)
    assert "--prompt: is for pipelines; pass --model too" in one_line_error("run", engine, "--prompt", "a cat", "--out", out)
    assert "--classes must be a list" in one_line_error("run", engine, "--classes", "three", "--out", out)
    assert "--steps must be at most 1000" in one_line_error("run", engine, "--steps", "1001", "--out", out)
    assert "'--seeds': Input should be greater than or equal to 1" in one_line_error("run", engine, "--seeds", "0", "--out", out)
    assert "--threshold must be a number >= 0" in one_line_error("run", engine, "--tau", "-1", "--out", out)
    assert "no such artefact" in one_line_error("run", tmp_path / "nowhere", "--out", out)
    (tmp_path / "file").touch()
    assert "cannot be written" in one_line_error("run", engine, "--out", tmp_path / "file" / "out")


def test_run_takes_the_options_of_generate_for_the_call_of_a_pipeline(
    onnx_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Called(Exception):  # noqa: N818
        pass

    def call(name: str, engine: Any, model: str, options: CallOptions, seeds: list[int]) -> Any:
        raise Called(options.by_option())

    monkeypatch.setattr(run_command, "engine_in_pipeline", call)
    options = ["--width", "16", "--height", "24", "--frames", "5", "--image", "a.png", "--negative-prompt", "b", "--cfg", "2"]
    with pytest.raises(Called) as called:
        run("run", onnx_small, "--model", "emoji", "--prompt", "a", *options, "--out", tmp_path)
    expected = {"--width": 16, "--height": 24, "--frames": 5, "--image": [Path("a.png")], "--negative-prompt": "b", "--cfg": 2.0}
    assert called.value.args == (expected,)
    for option, value in (("--width", "16"), ("--height", "16"), ("--frames", "5"), ("--image", "a.png")):
        assert f"{option}: is for pipelines; pass --model too" in one_line_error("run", onnx_small, option, value, "--out", tmp_path)


@pytest.mark.parametrize(
    ("sampler", "text"),
    [
        ({"kind": "cats"}, "sampler.kind: "),
        ({"cfg": "strong"}, "sampler.cfg: "),
        ({"null_class": 0}, "sampler.null_class: "),
        ({"surprise": 1}, "sampler.surprise: "),
        ({"scheduler": {"beta_schedule": "steep"}}, "sampler.scheduler: no DDIM scheduler"),
    ],
)
def test_an_invalid_sampler_is_refused_with_its_field(engine: Path, tmp_path: Path, sampler: dict[str, Any], text: str) -> None:
    folder = shutil.copytree(engine, tmp_path / "engine")
    data = json.loads((folder / MANIFEST).read_text())
    data["sampler"] |= sampler
    (folder / MANIFEST).write_text(json.dumps(sealed(data)))
    assert text in one_line_error("run", folder, "--out", tmp_path / "out")


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_verify_looks_at_everything_and_compares_a_whole_generation(engine: Path, model: Path) -> None:
    printed = ran("verify", engine, "--model", model)
    assert [line.split()[0] for line in printed.splitlines()] == [
        *("manifest", "model", "files", "target", "versions", "programs", "parity")
    ]
    assert "50 steps of the digits sampler: the same 50 decisions" in printed
    assert "parity" not in ran("verify", engine)


def test_verify_names_the_step_at_which_another_model_differs(engine: Path, tmp_path: Path) -> None:
    result = run("verify", engine, "--model", digits_folder(tmp_path / "other", seed=1, noise=0.1))
    assert result.exit_code == 1
    assert "parity    step 0 (FULL): the output is off by" in result.stderr


def test_verify_takes_a_pipeline_that_its_default_call_does_not_draw_with(
    engine: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> Any:
        raise LoadError("cannot be called like this")

    monkeypatch.setattr(verify, "with_first_call", refuses)
    loaded = rfc_export.load(engine)
    found = verify.exported_from(str(model), loaded)
    assert [call["hidden_states"].shape for call in found.calls] == [(4, 1, 8, 8)]
    assert type(found.model).__name__ == "DiTTransformer2DModel"
    (tmp_path / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(ExportError, match="is a FluxTransformer2DModel, the engine was made from a DiTTransformer2DModel"):
        verify.exported_from(str(tmp_path), loaded)  # before any weights are read


def test_a_pipeline_is_compared_over_the_engine_s_calls_and_never_drawn_at_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pipeline_folders.flux(tmp_path / "flux")
    shapes = {"hidden_states": [1, 16, 16], "encoder_hidden_states": [2, 700, 32], "img_ids": [16, 3], "txt_ids": [700, 3], "timestep": [1]}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tree, outputs = (dumped("call", pytree.tree_flatten(value)[1]) for value in (tensors, (0,)))
    leaves = [
        LeafSpec(argument=name, dtype="float32", shape=shape, value=None, fixed=None, placeholder=None) for name, shape in shapes.items()
    ]
    parameters = [name for name in inspect.signature(diffusers.FluxTransformer2DModel.forward).parameters if name != "self"]
    call = CallSpec(
        parameters=parameters, defaults={}, tree=tree, leaves=leaves, outputs=outputs, latent="hidden_states", timestep="timestep"
    )
    loaded = SimpleNamespace(spec=SimpleNamespace(call=call), expected=ExpectedCall(call, "flux", {}))
    model = SimpleNamespace(model_class="FluxTransformer2DModel", dtype="float32")
    engine: Any = SimpleNamespace(manifest=SimpleNamespace(model=model), device=torch.device("cpu"), sets=[loaded])

    @wraps(diffusers.FluxTransformer2DModel.forward)  # its signature is read
    def ran(*_: Any, **__: Any) -> Any:
        raise AssertionError("the pipeline's own size is 4096 tokens")

    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "forward", ran)
    (found,) = verify.exported_from(str(folder), engine).calls
    assert {name: list(value.shape) for name, value in found.items()} == shapes
    assert found["img_ids"][:, 1:].tolist() == [[0.0, float(column)] for column in range(16)]  # places of pixels, as the pipeline's
    assert not found["txt_ids"].any()
    assert found["timestep"].tolist() == [1.0]
    assert torch.equal(found["encoder_hidden_states"][0, :188], found["encoder_hidden_states"][1, 512:])  # repeated


def test_where_nothing_is_skipped_estimates_are_forced_and_compared(engine: Path, model: Path) -> None:
    loaded = rfc_export.load(engine)
    loaded.method = loaded.method.with_threshold(0)
    original = verify.exported_from(str(model), loaded)
    cached = verify.cached_like(loaded, original.model, original.calls[0])
    generation = verify.record_generation("engine", loaded, cached, original.calls[0], steps=4)
    verdict = verify.parity_over(loaded, cached, generation)
    assert {*verdict.parity.phases} == {"FULL"}
    assert verdict.forced is not None
    assert "ESTIMATE" in verdict.forced.phases
    assert f"none was skipped, so {len(verdict.forced.phases)} steps were forced: " in verdict.finding


def test_a_generation_of_one_repeated_timestep_is_still_one_generation() -> None:
    model, call = dit()
    cached = rfc_fx.transform(model, rfc.FORA(interval=2), example_inputs=call)
    calls = [moved(call | {"timestep": torch.tensor([0, 0])}, step, 4, "timestep") for step in range(4)]
    timed = Timed(name="model", call=cached, model=cached)
    timed.run(verify.RecordedGeneration(calls, None, "drifting"))
    assert sum(map(len, timed.steps_ms.values())) == 4
    assert timed.steps_ms["ESTIMATE"]


def test_a_list_of_full_steps_is_verified_over_the_steps_that_it_is_for() -> None:
    class Placed:
        manifest = SimpleNamespace(sampler=None, call=SimpleNamespace(timestep="timestep"))
        method = rfc.Chebyshev(nfc=3, num_steps=7)

    placed: Any = Placed()
    assert len(verify.record_generation("e", placed, None, dit()[1]).calls) == 7


def test_verify_refuses_what_is_damaged_on_one_line(engine: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(engine, tmp_path / "engine")
    (folder / "full.onnx").write_bytes(b"")
    assert f"{folder / 'full.onnx'}: 0 bytes" in one_line_error("verify", folder)
    (folder / MANIFEST).write_text("{")
    assert "no JSON" in one_line_error("verify", folder)


# ---- bench -----------------------------------------------------------------------------------------------------------


def test_bench_times_engine_model_and_twin_in_turns(engine: Path, model: Path, tmp_path: Path) -> None:
    printed = ran("bench", engine, "--model", model, "--rounds", 2, "--steps", STEPS, "--no-compile", "--out", tmp_path)
    record = json.loads((tmp_path / "bench.json").read_text())
    variants = record["variants"]
    assert list(variants) == ["onnx, host", "transformed", "eager twin"]
    assert len({one["nfc"] for one in variants.values()}) == 1
    for name, one in variants.items():
        assert name in printed
        assert len(one["generations_ms"]) == 2
        assert one["full_ms"] > 0 < one["estimate_ms"]
        assert one["host_reads"] > 0
    found = variants["onnx, host"]
    assert found["same_decisions"] is True
    assert found["largest_error"] <= TOLERANCE["float32"]
    assert found["artefact_bytes"] == sum(path.stat().st_size for path in engine.iterdir())
    assert found["state_bytes"] == 2 * variants["transformed"]["state_bytes"]  # written beside the old
    assert record["settings"]["rounds"] == 2


def test_bench_of_an_unknown_model_times_the_engine_alone(engine: Path) -> None:
    printed = ran("bench", engine, "--rounds", 1, "--steps", STEPS)
    assert "pass --model to compare" in " ".join(printed.split())
    assert "eager twin" not in printed


def test_the_shipped_model_is_recognised_by_its_weights(engine: Path) -> None:
    manifest = read_manifest(EngineFiles(engine))
    assert not drawing.is_shipped(manifest)
    own = load_file(DIGITS / "diffusion_pytorch_model.safetensors")
    shipped = {name: weight_spec(tensor.float()) for name, tensor in own.items()}
    assert drawing.is_shipped(manifest.model_copy(update={"weights": manifest.weights | shipped}))


def test_bench_refuses_engines_that_do_other_work(engine: Path, onnx_small: Path) -> None:
    assert "differ in method" in one_line_error("bench", engine, onnx_small)
    assert "'--rounds': Input should be" in one_line_error("bench", engine, "--rounds", 0)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--backend", "magic"], "'--backend': 'magic' is not one of 'aoti', 'onnx', 'tensorrt'; see rfc-fx export --help"),
        (["--dispatch", "each"], "'--dispatch': 'each' is not one of 'host', 'cond'"),
        (["--dispatch", "cond", "--hoist"], "--hoist needs --dispatch host"),
        (["--granularity", "atom"], "--granularity must be one of module, block, stack, output, prediction, blocks[a:b], got atom"),
        (["--granularity", "auto"], "--granularity must be one of module, block, stack, output, prediction, blocks[a:b], got auto"),
        (["--method", "dicache", "--granularity", "block"], "--granularity: DiCache works on 'stack', got 'block'; leave granularity out"),
        (["--method", "magcache"], "its ratios belong to a model; pass --preset with one of"),
        (["--method", "speca", "--dispatch", "cond"], "SpeCa has the phases FULL, ESTIMATE, VERIFY, an engine with dispatch='cond' has"),
        (["--method", "duca", "--dispatch", "cond"], "REUSE, an engine with dispatch='cond' has FULL and ESTIMATE; pass dispatch='host'"),
        (["--method", "fora", "--tau", "1"], "--tau: not a setting of fora"),
        (["--batch", "0"], "--batch must be numbers from 1 to 10000 like 4 or 1,4, got 0"),
        (["--method", "magic"], "--method must be one of"),
        (["--tau", "-1"], "tau must be a number >= 0"),
        (["--state-dtype", "int4"], "'--state-dtype': 'int4' is not one of"),
        (["--dtype", "int8"], "'--dtype': 'int8' is not one of"),
        (["--device", "abacus"], "--device abacus: not available here"),
    ],
)
def test_a_bad_option_of_export_is_one_line(model: Path, tmp_path: Path, arguments: list[str], text: str) -> None:
    assert text in one_line_error("export", model, "--backend", "onnx", "--out", tmp_path / "engine", *arguments)
    assert not list(tmp_path.iterdir())


def test_export_refuses_a_path_before_it_loads_the_model(engine: Path, tmp_path: Path) -> None:
    text = one_line_error("export", "no/such-model", "--backend", "onnx", "--out", engine)
    assert "exists; pass another path, or overwrite=True (--overwrite)" in text
    (tmp_path / "mine").touch()
    assert "not an artefact" in one_line_error("export", "no/such-model", "--backend", "onnx", "--out", tmp_path, "--overwrite")
    assert "no such folder" in one_line_error("export", tmp_path / "nowhere", "--backend", "onnx", "--out", tmp_path / "engine")


def test_the_commands_for_engines_stand_beside_the_others() -> None:
    words = set(ran("--help").split())
    assert {"generate", "inspect", "doctor", "export", "run", "verify", "bench"} <= words
