"""`rfc-fx generate` and `bench` on folders of tiny pipelines: text to picture, picture editing, two-model video, sound, digits."""

import json
import wave
from functools import partial

import command
import pipeline_folders
import pytest
import torch
from PIL import Image

import rfc_export.cli
import rfc_fx.zoo
from rfc_fx import CachedModel, accelerate
from rfc_fx.pipelines.accelerated import transformers_of
from rfc_fx.pipelines.step_times import StepTimes
from rfc_fx.tools.load import load_transformer
from rfc_fx.tools.pipeline import video_file
from rfc_fx.tools.pipeline.accelerated import records, relative
from rfc_fx.tools.pipeline.folder import pipeline_folder

pytestmark = pytest.mark.usefixtures("captured_once")

run, one_line_error = partial(command.run, rfc_export.cli.app), partial(command.one_line_error, rfc_export.cli.app)
SMALL = ["--height", 16, "--width", 16, "--no-compile"]


def generated(folder, out, *options):
    """Standard output, names of files, and the record."""
    result = run("generate", "--model", folder, "--out", out, *options)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in out.iterdir())
    assert all(str(out / name) in result.stdout.replace("\n", "") for name in names)
    return result.stdout, names, json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return pipeline_folders.wan(tmp_path_factory.mktemp("models") / "wan", 2)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return pipeline_folders.flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.mark.parametrize("has_pyav", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_video_pipeline_of_two_models_draws_with_both_accelerated(wan, tmp_path, monkeypatch, has_pyav):
    if has_pyav:
        pytest.importorskip("av")
    monkeypatch.setattr("rfc_fx.tools.pipeline.media_files.has_pyav", lambda: has_pyav)
    options = ["--prompt", "a cat", "--frames", 5, "--steps", 10, "--call", "guidance_scale_2=3", "--method", "fora"]
    stdout, names, record = generated(wan, tmp_path, *SMALL, *options)
    videos = ["fora-seed0.mp4", "full-seed0.mp4"]
    assert names == sorted(["images.png", "schedule.png", "summary.json", *(videos if has_pyav else [])])
    assert ("no .mp4: writing videos needs PyAV" in " ".join(stdout.split())) == (not has_pyav)
    if has_pyav:
        assert [frame.size for frame in video_file.frames_of(tmp_path / videos[0])] == [(16, 16)] * 5
    entry = record["methods"]["fora"]
    (phases,) = entry["phases"]
    assert len(phases) == 10  # those of both models, one after the other
    assert "." in phases
    assert entry["contexts"] == [["cond", "uncond"]]
    assert 0 < entry["error"] < 0.2
    assert record["settings"]["pipeline"] == "WanPipeline"
    assert record["settings"]["call"] == {"width": 16, "height": 16, "num_frames": 5, "guidance_scale_2": 3}


def test_both_models_of_a_pipeline_are_loaded_and_transformed(wan):
    pipe = pipeline_folder(str(wan)).load(None, torch.device("cpu"))
    other = accelerate(relative(pipe), compile=False)
    assert [isinstance(model, CachedModel) for model in transformers_of(other).values()] == [True] * 2
    assert [type(model).__name__ for model in transformers_of(pipe).values()] == ["WanTransformer3DModel"] * 2
    assert records(other) == {}


def test_an_edit_pipeline_draws_from_a_picture_in_the_dtype_of_its_folder(tmp_path):
    folder = pipeline_folders.flux(tmp_path / "kontext", "FluxKontextPipeline", torch.bfloat16)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    out = tmp_path / "out"
    options = ["--prompt", "blue", "--image", tmp_path / "red.png", "--call", "_auto_resize=false", "--call", "max_area=256", "--steps", 6]
    _, names, record = generated(folder, out, *SMALL, *options)
    assert names == ["full-seed0.png", "images.png", "log-snr-seed0.png", "schedule.png", "summary.json"]
    assert record["settings"]["dtype"] == "bfloat16"
    assert record["settings"]["call"]["image"] == "Image (16, 16)"
    (phases,) = record["methods"]["log-snr"]["phases"]
    assert (phases.count("#"), len(phases)) == (2, 6)
    with Image.open(out / "full-seed0.png") as picture:
        assert picture.size == (16, 16)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_an_audio_pipeline_writes_sound_and_its_waveform(tmp_path):
    folder = pipeline_folders.stable_audio(tmp_path / "audio")
    out = tmp_path / "out"
    options = ["--prompt", "rain", "--call", "audio_end_in_s=1.0", "--steps", 6, "--no-compile"]
    _, names, record = generated(folder, out, *options)
    assert names == ["full-seed0.wav", "images.png", "log-snr-seed0.wav", "schedule.png", "summary.json"]
    assert "." in record["methods"]["log-snr"]["phases"][0]
    with wave.open(str(out / "full-seed0.wav")) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getsampwidth()) == (2, 4, 2)


@pytest.fixture
def _measured(monkeypatch, tmp_path):
    """A full step takes 1 s, an estimated one 0.1."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("rfc_fx.pipelines.accelerated.read_times", lambda key: StepTimes(1.0, 0.1))


@pytest.mark.usefixtures("_measured")
@pytest.mark.parametrize(("options", "full"), [(["--nfc", 0.5], 6), (["--speedup", 2.5], 4)])
def test_full_steps_are_a_share_or_what_a_speedup_takes(flux, tmp_path, options, full):
    given = [*SMALL, "--prompt", "a", "--steps", 12, *options]
    _, _, record = generated(flux, tmp_path / "drawn", *given)
    assert record["methods"]["log-snr"]["nfc"] == full
    assert 12 / (full + (12 - full) * 0.1) >= (options[1] if full == 4 else 0)
    assert run("bench", flux, *given, "--rounds", 1, "--out", tmp_path / "timed").exit_code == 0
    record = json.loads((tmp_path / "timed" / "bench.json").read_text())
    assert record["variants"]["accelerated"]["full_steps"] == full
    assert any("asked to be 2.5 times as fast" in note for note in record["notes"]) == ("--speedup" in options)


WRONG = [
    (["--nfc", 0], "--nfc must be a number of full steps such as 8, or a share of the steps such as 0.28, got 0"),
    (["--nfc", 1.5], "--nfc must be a number of full steps such as 8, or a share of the steps such as 0.28, got 1.5"),
    (["--nfc", 99], "--nfc must be from 1 to 28, the steps of a generation, got 99"),
    (["--nfc", 0.3, "--speedup", 2], "--nfc and --speedup: pass one of them"),
    (["--speedup", 1], "--speedup must be above 1, how many times faster than full computation, got 1"),
    (["--speedup", "fast"], "--speedup must be a finite number, got fast"),
    (["--speedup", 2, "--method", "fora"], "--speedup: fora places no number of full steps; chebyshev, log-snr, spectrum do"),
]


@pytest.mark.parametrize("command_line", [["generate", "--model"], ["bench"]], ids=["generate", "bench"])
@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_numbers_of_full_steps_are_refused_before_anything_is_loaded(flux, monkeypatch, command_line, options, text):
    monkeypatch.setattr("rfc_fx.tools.pipeline.folder.PipelineFolder.load", lambda *_: pytest.fail("loaded"))
    assert text in one_line_error(*command_line, flux, "--prompt", "a", *options)


def test_a_call_that_the_pipeline_refuses_is_one_line(flux):
    refused = one_line_error("generate", "--model", flux, "--prompt", "a", *SMALL, "--call", "max_sequence_length=99999")
    assert "FluxPipeline cannot be called like this: ValueError: `max_sequence_length` cannot be greater than 512" in refused


def test_a_saved_digits_pipeline_draws_every_class_in_one_call(tmp_path):
    rfc_fx.zoo.digits().save_pretrained(tmp_path / "digits")
    out = tmp_path / "out"
    _, names, record = generated(tmp_path / "digits", out, "--no-compile", "--steps", 6, "--classes", "3,7", "--seeds", 2)
    own = [f"{method}-class{label}-seed{seed}.png" for method in ("full", "log-snr") for label in (3, 7) for seed in (0, 1)]
    assert names == sorted([*own, "images.png", "schedule.png", "summary.json"])
    assert len(record["methods"]["log-snr"]["phases"]) == 2
    assert "--classes must lie in 0-9, got 10" in one_line_error("generate", "--model", tmp_path / "digits", "--classes", 10)


def test_a_folder_in_half_precision_is_loaded_as_it_is_stored_and_as_asked(tmp_path):
    folder = pipeline_folders.wan(tmp_path / "wan")
    for path in (folder, folder / "transformer"):
        for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
            model = load_transformer(path, dtype, torch.device("cpu"))
            assert model.blocks[0].attn1.to_q.weight.dtype == expected


def test_bench_times_a_pipeline_in_turns_and_writes_before_it_prints(flux, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("rfc_fx.tools.commands.bench.print_notes", lambda *_: written.extend(path.name for path in tmp_path.iterdir()))
    result = run("bench", flux, *SMALL, "--prompt", "a cat", "--steps", 6, "--rounds", 2, "--nfc", 3, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(written) == ["bench.json", "bench.txt"]
    record = json.loads((tmp_path / "bench.json").read_text())
    eager, accelerated = record["variants"].values()
    assert (eager["full_steps"], accelerated["full_steps"]) == (6, 3)
    assert len(eager["calls_ms"]) == len(accelerated["calls_ms"]) == 2
    assert accelerated["speedup_over_eager"] == pytest.approx(eager["call_ms"]["median"] / accelerated["call_ms"]["median"])
    assert eager["error"]["most"] == 0 < accelerated["error"]["least"] < 0.1
    assert eager["state_mib"] == 0 < accelerated["state_mib"]
    assert eager["peak_mib"] is None or eager["peak_mib"] > 100
    text = (tmp_path / "bench.txt").read_text()
    assert all(word in text for word in ("eager", "accelerated", "MiB", "note: nothing was compiled"))


@pytest.mark.compile
@pytest.mark.slow
def test_bench_compiles_the_plain_and_the_accelerated_pipeline(tmp_path):
    result = run("bench", "digits", "--classes", 3, "--steps", 4, "--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    variants = json.loads((tmp_path / "bench.json").read_text())["variants"]
    assert list(variants) == ["eager", "compiled", "accelerated"]
    assert variants["compiled"]["error"]["most"] < 1e-3
    assert variants["accelerated"]["speedup_over_compiled"] > 0


def test_bench_refuses_what_is_for_the_other_kind(flux, tmp_path):
    (tmp_path / "rfc.json").touch()
    assert "--prompt: is for pipelines" in one_line_error("bench", tmp_path, "--prompt", "a")
    assert "--model: is for engines" in one_line_error("bench", flux, "--prompt", "a", "--model", "digits")
    assert "one pipeline, or engines" in one_line_error("bench", flux, flux)
    assert "no such artefact, folder or model; bench takes digits, emoji" in one_line_error("bench", tmp_path / "nowhere")
    assert "--steps must be at least 2" in one_line_error("bench", "emoji", "--prompt", "a", "--steps", 1)


@pytest.mark.parametrize("kind", ["tune", "calibrate"])
def test_what_a_pipeline_refuses_is_one_line_before_a_method_file_is_fitted(wan, tmp_path, kind):
    options = {"tune": ["--error", 0.1], "calibrate": ["--nfc", 3, "--method", "chebyshev"]}[kind]
    options = ["--prompt", "a", "--steps", 6, "--seeds", 1, "--out", tmp_path / "method.json", *options]
    text = one_line_error(kind, wan, *options)
    assert "has 2 denoisers (transformer, transformer_2), and a method file is for the steps of one" in text
    edit = pipeline_folders.flux(tmp_path / "edit", "FluxImg2ImgPipeline")
    assert "FluxImg2ImgPipeline cannot be called like this: ValueError" in one_line_error(kind, edit, *options)
